"""A site on this machine: every Unit is a child process, which the kernel ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import final

from airserve.linux import die_with_parent
from airserve.place.sites import RELAY, Site, Started, State, Unit

SERVICE = "airserve.serve.service"
EMULATOR = "airserve.network.emulator"
# Parallelism is that of processes and their cores: libraries that start threads of their own spoil both.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@final
class ProcessStarted(Started):
    """A child process, ready once a line of its output starts with `ready`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, begins: int) -> None:
        self._process, self._log, self._begins = process, log, begins
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def state(self) -> State:
        if self._process.poll() is not None:
            return "ended"
        self._ready = self._ready or any(line.startswith("ready") for line in self._lines())
        return "ready" if self._ready else "starting"

    def last_words(self) -> str:
        lines = [line for line in self._lines() if line.strip() and not line.startswith("ready")]
        return lines[-1].strip() if lines else _ending(self._process.returncode)

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _lines(self) -> list[str]:
        with open(self._log, "rb") as file:
            file.seek(self._begins)
            return file.read().decode("utf-8", "replace").splitlines()


@final
class ProcessSite(Site):
    """Starts Units of the deployment whose folder is `run_dir`, with `deployment.json` in it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def start(self, unit: Unit) -> Started:
        deployment = str(self.run_dir / "deployment.json")
        command = [EMULATOR, deployment, str(self.run_dir)] if unit.key == RELAY else [SERVICE, deployment, unit.key]
        path = self.run_dir / "logs" / f"{unit.key}.txt"
        path.parent.mkdir(exist_ok=True)
        parent = os.getpid()

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the supervisor waits for signals that it blocks
            die_with_parent(parent)

        with open(path, "ab") as log:
            begins = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD},
                preexec_fn=prepare,
            )
        return ProcessStarted(process, path, begins)


def _ending(status: int | None) -> str:
    if status is None:
        return "it says nothing"
    return f"it ended with status {status}" if status >= 0 else f"it was ended by {signal.Signals(-status).name}"
