"""An answer that is there by the end of this turn of the loop: neither a task nor a future is made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final


@final
class Pending:
    """A request's place in its connection's row of answers, until `settle` is given the response."""

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
