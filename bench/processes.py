"""Servers under measurement: started with a key and limits, what their whole process tree spends and holds, its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from airserve.serve.tenants import new_key

PR_SET_CHILD_SUBREAPER = 36
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def installed(folder: Path) -> dict[str, str]:
    """The environment of a process whose modules are compiled, as `pip install` leaves them: once it has run here."""
    kept = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}


class Server(NamedTuple):
    """A server that answers: `http` and `grpc` are HOST:PORT, "" where it has none; `key` is sent by every request."""

    pid: int
    http: str
    grpc: str
    key: str
    ready_s: float  # from the start of the process


@contextmanager
def airserve(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`airserve serve ARGUMENTS` with a tenant that has a rate, a concurrency and models, none of which it reaches."""
    keys = folder / f"keys-{time.monotonic_ns()}.json"  # each server's own: it follows what is written there
    new_key(keys, "another", rate_hz=10.0, concurrency=4)
    key = new_key(keys, "bench", rate_hz=1e6, concurrency=1000, models=("tiny", "real"))
    command = [sys.executable, "-m", "airserve.cli", "serve", *arguments, "--port", "0", "--keys", str(keys)]
    begun_s = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment or ENVIRONMENT)
    assert server.stdout is not None
    try:
        words = server.stdout.readline().split()
        ready_s = time.monotonic() - begun_s
        http = next(word for word in words if word.startswith("http://")).removeprefix("http://")
        grpc = next((word for word in words if word.startswith("grpc://")), "").removeprefix("grpc://")
        yield Server(server.pid, http, grpc, key, ready_s)
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Kills whatever was started within, at the end, at Ctrl-C and at SIGTERM.

    A server's workers may have sessions of their own and outlive it; orphans become children of this process (Linux's
    PR_SET_CHILD_SUBREAPER), so that none is missed.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(tree(os.getpid()))
    handled = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        while left := set(tree(os.getpid())) - before:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, handled)


def cpu_s(pid: int) -> float:
    """CPU time of a process and all below it, user and system, by their clocks."""
    return sum(time.clock_gettime((~one << 3) | 2) for one in tree(pid))  # clock_getcpuclockid(3) as Linux encodes it


def resident_mb(pid: int) -> float:
    """Memory of a process and all below it; pages that several share count once (PSS)."""
    total_kb = 0
    for one in tree(pid):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total_kb += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1024
