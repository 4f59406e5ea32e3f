"""A connection through the relay: two sockets, and what is under way between them."""

from __future__ import annotations

import socket
from typing import final

from airserve.network.buffers import DOWN, UP


@final
class Half:
    """One direction of a connection: bytes from `source` over the air to `sink`."""

    __slots__ = ("connection", "direction", "ended", "flying", "logged", "out", "passed", "paused", "sink", "source")

    def __init__(self, connection: Connection, direction: int, source: socket.socket, sink: socket.socket) -> None:
        self.connection = connection
        self.direction = direction
        self.source = source
        self.sink = sink
        self.flying = 0  # chunks read and not yet released
        self.logged = 0  # bytes released or dropped
        self.out = bytearray()  # released, and not yet taken by the sink's socket
        self.ended = ""  # "eof" or "reset", once the source has ended
        self.passed = False  # the sink has learned it
        self.paused = False


@final
class Connection:
    """A device's TCP connection and the one to the site that continues it."""

    __slots__ = ("client", "closed", "connecting", "down", "number", "port", "site", "ue", "up", "upstream")

    def __init__(
        self, number: int, ue: int, port: int, site: int, client: socket.socket, upstream: socket.socket
    ) -> None:
        self.number, self.ue, self.port, self.site = number, ue, port, site
        self.client, self.upstream = client, upstream
        self.connecting = True
        self.closed = False
        self.up = Half(self, UP, client, upstream)
        self.down = Half(self, DOWN, upstream, client)
