"""Files of a running service that others write: keys of tenants, keys of an issuer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar, final

from airserve.serve.configuration import ConfigurationError

REREAD_S = 1.0  # a file is looked at again at most so often
T = TypeVar("T")
log = logging.getLogger(__name__)


@final
class Reread(Generic[T]):
    """What `read` makes of a file, made again once the file has changed. What cannot be read changes nothing.

    Raises what `read` raises at first; later a `ConfigurationError` of it is logged.
    """

    def __init__(self, file: str, read: Callable[[], T]) -> None:
        self._file, self._read = file, read
        self._stamp, self._found = _stamp(file), read()
        self._again_s = 0.0

    def now(self) -> T:
        """What the file says, as of a second ago at most."""
        if (now_s := monotonic()) >= self._again_s:
            self._again_s = now_s + REREAD_S
            if (stamp := _stamp(self._file)) != self._stamp:
                self._stamp = stamp
                try:
                    self._found = self._read()
                except ConfigurationError as error:
                    log.warning("what was read of it before stays in force: %s", error)
        return self._found


def _stamp(file: str) -> tuple[int, ...]:
    """What tells a file from another that was put in its place or written over it."""
    try:
        of = os.stat(file)
    except OSError:
        return ()
    return of.st_mtime_ns, of.st_ino, of.st_size
