"""Time for those who wait: a clock that jumps and one that sleeps (clock_nanosleep). The idea is SimPy's rt.py."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Protocol, final

from airserve import linux

CLOCK_MONOTONIC = 1
TIMER_ABSTIME = 1


class Clock(Protocol):
    """What a loop needs of time, simulated or not."""

    @property
    def now_s(self) -> float: ...

    def wait_until(self, t_s: float) -> None: ...


@final
class VirtualClock:
    """Simulated time: waiting is a jump, and never back.

    >>> clock = VirtualClock()
    >>> clock.wait_until(60)
    >>> clock.now_s
    60.0
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def wait_until(self, t_s: float) -> None:
        self.now_s = max(self.now_s, float(t_s))


@final
class RealClock:
    """Seconds of CLOCK_MONOTONIC since this clock was made, at `began_s` of time.monotonic()."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.began_s = time.monotonic()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def wait_until(self, t_s: float) -> None:
        """Sleep until a time, without other threads being held up; returns at once when it has passed."""
        nanoseconds = round((self.began_s + t_s) * 1e9)
        until = _Timespec(*divmod(nanoseconds, 1_000_000_000))
        while True:  # a signal ends the sleep early, and its handler has then run
            error = self._libc.clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, ctypes.byref(until), None)
            if error == 0:
                return
            if error != 4:  # EINTR
                raise OSError(error, os.strerror(error))

    def realtime(self, priority: int = 10) -> str:
        """Ask for SCHED_FIFO and exact timers for this thread; returns what was obtained."""
        return linux.run_on_time(priority)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))
