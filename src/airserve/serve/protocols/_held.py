"""A request in pieces whose header is known: nothing of it is looked at until it is all there."""

from __future__ import annotations

from typing import final

from airserve.serve.protocols._limits import Limits, Share

SMALL_BYTES = 64 << 10  # of a body; smaller ones are not counted among those that a listener holds


@final
class Held:
    """The pieces of one request at a time."""

    __slots__ = ("_limit_bytes", "_pieces", "_share", "_whole_bytes", "counted_bytes", "held_bytes")

    def __init__(self, share: Share, limits: Limits) -> None:
        self._share = share
        self._limit_bytes = limits.bodies_bytes
        self._pieces: list[bytes] = []
        self._whole_bytes = 0
        self.held_bytes = 0
        self.counted_bytes = 0  # of the bodies that the listener holds, whose room is to be let go by who answers

    def begin(self, data: bytes, whole_bytes: int) -> bool:
        """Holds the front of a request of so many bytes; False where there is no room."""
        self._whole_bytes, self.counted_bytes = whole_bytes, 0
        if not self._room(data):
            return False
        self._pieces.append(data)
        self.held_bytes = len(data)
        return True

    def add(self, data: bytes) -> bytes:
        """What has come, once the request is all there or there is no room for more; b"" until then."""
        self._pieces.append(data)
        self.held_bytes += len(data)
        if self._room(data) and self.held_bytes < self._whole_bytes:
            return b""
        whole = b"".join(self._pieces)
        self._pieces.clear()
        self.held_bytes = 0
        return whole

    def drop(self) -> None:
        self._share.let_go(self.counted_bytes)
        self._pieces.clear()
        self.held_bytes = self.counted_bytes = 0

    def _room(self, data: bytes) -> bool:
        if self._whole_bytes <= SMALL_BYTES:
            return True
        self.counted_bytes += len(data)
        if self._share.take(len(data)) <= self._limit_bytes:
            return True
        self._share.let_go(self.counted_bytes)
        self.counted_bytes = 0
        return False
