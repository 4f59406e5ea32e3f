"""The room of a gateway: how many requests it has under way, of all its protocols together."""

from __future__ import annotations

from typing import final

from airserve.serve.batching import Overloaded

UNDER_WAY = 4096


@final
class Room:
    """Places that requests take and leave; touched by the loop's thread only.

    >>> room = Room(most=1)
    >>> with room:
    ...     room.taken
    1
    >>> room.taken
    0
    """

    def __init__(self, most: int = UNDER_WAY) -> None:
        self.most, self.taken = most, 0

    def enter(self) -> None:
        """Raises `Overloaded`."""
        if self.taken >= self.most:
            raise Overloaded(f"{self.most} requests are under way; ask again later.")
        self.taken += 1

    def leave(self) -> None:
        self.taken -= 1

    def __enter__(self) -> Room:
        self.enter()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
