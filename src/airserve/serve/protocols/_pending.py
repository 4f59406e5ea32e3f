"""Places in a connection's row of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, final

from airserve.serve.protocols._head import Head


@final
class Pending:
    """The place of an answer that is there by the end of this turn of the loop: neither a task nor a future is made."""

    __slots__ = ("_changes", "response", "settled")

    # As any place in the row: no answer to HEAD, not the connection's last, no stream.
    bare = lingers = False
    head: Any = None
    turn: Any = None

    def __init__(self) -> None:
        self.response: bytes | None = None
        self.settled: Callable[[Pending], None] | None = None  # who is told when the response is there
        self._changes: tuple[Callable[[bytes], bytes], ...] | None = None

    def then(self, change: Callable[[bytes], bytes]) -> Pending:
        """What is done with the response before it goes, in the order given."""
        self._changes = (*(self._changes or ()), change)
        return self

    def settle(self, response: bytes) -> None:
        if self._changes is not None:
            for change in self._changes:
                response = change(response)
        self.response = response
        if self.settled is not None:
            self.settled(self)


@final
class Slot:
    """A request's place in its connection's row, for an answer that is there at once, or later, or is a stream."""

    __slots__ = ("bare", "head", "held_bytes", "lingers", "response", "stays", "turn")

    def __init__(
        self, *, bare: bool = False, lingers: bool = False, stays: bool = False, head: Head | None = None
    ) -> None:
        self.response: bytes | None = None
        self.turn: asyncio.Future[None] | None = None  # to be sent, for a stream
        self.head = head
        self.bare = bare  # an answer to HEAD has no body
        self.lingers = lingers
        self.stays = stays  # the connection does, as HTTP/1.0 has to be told
        self.held_bytes = 0  # of the request's body
