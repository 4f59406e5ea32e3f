"""Files of a running service that others write: keys of tenants, keys of an issuer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar, final

REREAD_S = 1.0  # a file is looked at again at most so often
T = TypeVar("T")
log = logging.getLogger(__name__)


@final
class Reread(Generic[T]):
    """What `read` makes of a file, made again once the file has changed, and whether that is all that it says.

    What cannot be read changes nothing, whatever is wrong with it: that is logged, and tried again each time; so is
    what was not all. Raises what `read` raises at first.
    """

    def __init__(self, file: str, read: Callable[[], tuple[T, bool]]) -> None:
        self._file, self._read = file, read
        self._stamp: tuple[int, ...] | None = stamp_if_any(file)  # None: of what was read only in part
        self._found, whole = read()
        if not whole:
            self._stamp = None
        self._told: tuple[int, ...] | None = None  # that this one cannot be read
        self._again_s = 0.0
        self._busy = Lock()  # one thread looks, the others take what is there

    def now(self) -> T:
        """What the file says, or said when it was last looked at."""
        if monotonic() >= self._again_s and self._busy.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._busy.release()
        return self._found

    def _look(self) -> None:
        self._again_s = monotonic() + REREAD_S
        if (seen := stamp_if_any(self._file)) == self._stamp:
            return
        try:
            self._found, whole = self._read()
        except Exception as error:
            if seen != self._told:
                log.warning("what was read of it before stays in force: %s", error)
                self._told = seen
        else:
            self._stamp = seen if whole else None


def stamp(file: str) -> tuple[int, ...]:
    """What tells a file from another of its name, put in its place or written over it. Raises `OSError`."""
    of = os.stat(file)
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns


def stamp_if_any(file: str) -> tuple[int, ...]:
    """The same; () of a file that cannot be looked at."""
    try:
        return stamp(file)
    except OSError:
        return ()
