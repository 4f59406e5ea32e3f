"""What a client of HTTP may ask of a connection, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from airserve.wire import BODY_LIMIT_BYTES


@dataclass(frozen=True)
class Limits:
    """What a connection may ask of the server."""

    header_bytes: int = 64 << 10
    body_bytes: int = BODY_LIMIT_BYTES
    pipeline: int = 1024  # requests that may wait for their answers before a connection is read no further
    header_s: float = 10.0  # from a header's first byte to its last
    body_bytes_per_s: float = 4096.0  # the least that a body must arrive at, over every `header_s`
    bodies_bytes: int = 1 << 30  # of a listener, from when they arrive until they are answered
    idle_s: float = 300.0  # between requests
    write_s: float = 30.0  # that a client may leave an answer unread
    linger_s: float = 2.0  # a client that still sends is read for so long, for a reset would take the answer from it


@final
class Bodies:
    """What the connections of a listener hold of bodies. Those that arrive in one piece are none: they are small."""

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        self.held_bytes = 0


@final
class Share:
    """What one connection holds of them."""

    __slots__ = ("_bodies", "held_bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.held_bytes = 0

    def take(self, size: int) -> int:
        """What all connections hold then."""
        self.held_bytes += size
        self._bodies.held_bytes += size
        return self._bodies.held_bytes

    def let_go(self, size: int) -> None:
        size = min(size, self.held_bytes)  # a connection that has ended holds nothing, whatever is answered later
        self.held_bytes -= size
        self._bodies.held_bytes -= size
