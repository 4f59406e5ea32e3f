"""From the command line to the service: the process becomes its supervisor."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from airserve.serve.configuration import Configuration

# Parallelism is that of the workers: libraries that start threads of their own spoil it, and a fork of them.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def imported_first(source: str) -> bool:
    """Whether a source is what another tool made, and becomes a model of the registry before it is served."""
    path = Path(source)
    return path.suffix not in ("", ".onnx") or (path / "config.json").is_file()


def supervise(configuration: Configuration) -> int:
    """Be the supervisor of a service until it ends; the exit status. For a process that has loaded next to nothing.

    Raises `ConfigurationError`.
    """
    configuration.check()
    os.environ.update(ONE_THREAD)  # before anything is imported that asks for it
    from airserve.serve import supervising

    return supervising.supervise(configuration)


def become(configuration: Configuration) -> NoReturn:
    """Be the supervisor of a service, and leave behind what the process had loaded. Raises `ConfigurationError`."""
    configuration.check()
    told = os.memfd_create("airserve-configuration", 0)
    os.write(told, json.dumps(dataclasses.asdict(configuration)).encode())
    sys.stdout.flush()
    command = [sys.executable, "-m", "airserve.serve.supervising", f"/proc/self/fd/{told}"]
    os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
