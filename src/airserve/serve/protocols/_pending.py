"""Places in a connection's row of answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, final

from airserve.serve.protocols._head import Head

log = logging.getLogger(__name__)


@final
class Pending:
    """The place of an answer that is told when it is there: neither a task nor a future is made.

    It is at once, or with the batch that it waits for, unless there is a `give_up`: then it lasts, and may be given up.
    """

    __slots__ = ("_changes", "_gone", "give_up", "response", "settled")

    # As any place in the row: no answer to HEAD, not the connection's last, no stream.
    bare = lingers = False
    head: Any = None
    turn: Any = None

    def __init__(self) -> None:
        self.response: bytes | None = None
        self.settled: Callable[[Pending], None] | None = None  # who is told when the response is there
        self.give_up: Callable[[], None] | None = None  # ends what is under way for it
        self._changes: tuple[Callable[[bytes], bytes], ...] | None = None
        self._gone: tuple[Callable[[], None], ...] = ()

    def then(self, change: Callable[[bytes], bytes], gone: Callable[[], None] | None = None) -> Pending:
        """What is done with the response before it goes, in the order given; `gone`: instead, where nobody waits."""
        self._changes = (*(self._changes or ()), change)
        if gone is not None:
            self._gone = (*self._gone, gone)
        return self

    def settle(self, response: bytes) -> None:
        self.give_up = None  # which leads back here, as does who is told: together they would stay until a collection
        if self._changes is not None:
            for change in self._changes:
                try:
                    response = change(response)
                except Exception as error:
                    log.error("what is done with each answer failed; it goes without", exc_info=error)
        self.response = response
        if self.settled is not None:
            self.settled(self)

    def abandon(self) -> None:
        """Nobody waits for it any more, where it lasts."""
        give_up, self.give_up = self.give_up, None
        if give_up is not None:
            for one in (give_up, *self._gone):
                try:
                    one()
                except Exception as error:
                    log.error("what is done where a client has gone failed", exc_info=error)


@final
class Slot:
    """A request's place in its connection's row, for an answer that is there at once, or later, or is a stream."""

    __slots__ = ("bare", "head", "held_bytes", "lingers", "pending", "response", "stays", "turn")

    def __init__(
        self,
        *,
        bare: bool = False,
        lingers: bool = False,
        stays: bool = False,
        head: Head | None = None,
        held_bytes: int = 0,
    ) -> None:
        self.response: bytes | None = None
        self.turn: asyncio.Future[None] | None = None  # to be sent, for a stream
        self.head = head
        self.bare = bare  # an answer to HEAD has no body
        self.lingers = lingers
        self.stays = stays  # the connection does, as HTTP/1.0 has to be told
        self.held_bytes = held_bytes  # of the request's body
        self.pending: Pending | None = None  # what fills it
