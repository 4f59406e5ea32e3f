"""A request in pieces whose header is known: nothing of it is looked at until it is all there."""

from __future__ import annotations

from typing import final

from airserve.serve.protocols._limits import Limits, Share

SMALL_BYTES = 64 << 10  # of a body; smaller ones are not counted among those that a listener holds


@final
class Held:
    """The pieces of one request at a time."""

    __slots__ = ("_counted_bytes", "_limit_bytes", "_pieces", "_share", "_whole_bytes", "held_bytes")

    def __init__(self, share: Share, limits: Limits) -> None:
        self._share = share
        self._limit_bytes = limits.bodies_bytes
        self._pieces: list[bytes] = []
        self._whole_bytes = 0
        self.held_bytes = 0
        self._counted_bytes = 0  # among the bodies that the listener holds

    def begin(self, data: bytes, whole_bytes: int) -> bool:
        """Holds the front of a request of so many bytes; False where there is no room."""
        self._whole_bytes = whole_bytes
        if not self._count(data):
            self.drop()
            return False
        self._pieces.append(data)
        self.held_bytes = len(data)
        return True

    def add(self, data: bytes) -> tuple[bytes, int, bool]:
        """What has come, once the request is all there or there is no room for more; b"" until then.

        With it the bytes that are counted until it is answered, and whether there was room; else none are.
        """
        self._pieces.append(data)
        self.held_bytes += len(data)
        room = self._count(data)
        if room and self.held_bytes < self._whole_bytes:
            return b"", 0, True
        whole = b"".join(self._pieces)
        counted_bytes = self._counted_bytes
        if room:
            self._counted_bytes = 0  # they are who answers' to let go
        self.drop()
        return whole, counted_bytes if room else 0, room

    def drop(self) -> None:
        self._share.let_go(self._counted_bytes)
        self._pieces.clear()
        self.held_bytes = self._counted_bytes = 0

    def _count(self, data: bytes) -> bool:
        """Whether there is room for it, where it is counted."""
        if self._whole_bytes <= SMALL_BYTES:
            return True
        self._counted_bytes += len(data)
        return self._share.take(len(data)) <= self._limit_bytes
