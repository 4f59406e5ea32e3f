"""What our processes ask of Linux: to run on time, to wake at an instant, to die with their parent, to hold little.

sched(7), prctl(2), proc(5), mallopt(3). asyncio and uvloop round timers to 1 ms, which is two slots of a 30 kHz
carrier.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 20


def run_on_time(priority: int) -> str:
    """Ask for SCHED_FIFO and exact timers for this thread and those it starts; returns what was obtained.

    Objects made so far leave the garbage collector's sight, so that a collection is short.
    """
    wake_at_once()
    gc.collect()
    gc.freeze()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return "SCHED_OTHER: SCHED_FIFO is not allowed here (it needs root, CAP_SYS_NICE or an rtprio limit)"
    return f"SCHED_FIFO {priority}"


def wake_at_once() -> None:
    """Have this thread's sleeps end when they are due: by default 50 us later, so that the kernel can join them."""
    _prctl(PR_SET_TIMERSLACK, 1)


def run_as_others() -> None:
    """Back from SCHED_FIFO to the ordinary class, for work that nobody waits for."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def cores_awake() -> Iterator[str]:
    """Keep a virtual machine's processors from halting: a loop of class SCHED_IDLE on each, which gives way to all.

    A halted virtual processor is handed back to the host and wakes milliseconds late (99th percentile of a 0.5 ms
    timer here: 2.7 ms, with the loops 0.08 ms). Gives what was done, in words; on bare metal nothing is.
    """
    if " hypervisor" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        yield "bare metal: cores sleep as they like"
        return
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "airserve.linux"]
    loops = [subprocess.Popen([*command, str(core), str(os.getpid())]) for core in cores]
    try:
        yield f"{len(cores)} virtual cores kept awake by loops of class SCHED_IDLE"
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def wait(epoll: select.epoll, until_s: float | None) -> list[tuple[int, int]]:
    """Ready file descriptors, or an empty list at `until_s` of time.monotonic(); None waits for ever.

    epoll's own timeout counts whole milliseconds; select's microseconds, and an epoll can be selected.
    """
    if until_s is not None:
        select.select([epoll], [], [], max(0.0, until_s - time.monotonic()))
        return epoll.poll(0)
    return epoll.poll()


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process, at once, when its parent `parent` ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def map_large_blocks() -> None:
    """Have every block of a megabyte or more asked of the system and given back to it, for as long as this process is.

    glibc raises that size with each large block that is freed, to 32 MB: then they lie among the small ones, and where
    one was, what lives on either side keeps its place. Without glibc it does nothing.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_THRESHOLD, LARGE_BYTES)
        tune(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)  # as glibc would have it: no call of the system for each free


def give_back() -> None:
    """Give freed memory back to the system (malloc_trim(3)): glibc keeps what was freed below something that lives.

    Without glibc it does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_all_files() -> None:
    """As many open files as the administrator allows: a device takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def born(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot, which tells it from a later one of the same number.

    >>> born(os.getpid()) is not None, born(2**22 + 1)
    (True, None)
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def command(pid: int) -> list[str]:
    """The arguments of a process; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _stay_awake(core: int, parent: int) -> None:
    die_with_parent(parent)
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        pass


if __name__ == "__main__":
    _stay_awake(int(sys.argv[1]), int(sys.argv[2]))
