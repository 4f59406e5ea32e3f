"""From the command line to the service: the process becomes its supervisor, and leaves behind what it had loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import NoReturn

from airserve.serve.configuration import Configuration

# Parallelism is that of the workers: libraries that start threads of their own spoil it, and a fork of them.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def become(configuration: Configuration) -> NoReturn:
    """Be the supervisor of a service. Raises `ConfigurationError`.

    Nothing is imported here that the supervisor imports again, for that is half of the time until it is ready.
    """
    configuration.check()
    told = os.memfd_create("airserve-configuration", 0)
    os.write(told, json.dumps(dataclasses.asdict(configuration)).encode())
    sys.stdout.flush()
    command = [sys.executable, "-m", "airserve.serve.supervising", f"/proc/self/fd/{told}"]
    os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
