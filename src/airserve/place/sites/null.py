"""A site that runs nothing: what is started is ready when the test says so. For tests of what starts, when and why."""

from __future__ import annotations

from typing import final

from airserve.place.sites import Site, Started, State, Unit


@final
class NullStarted(Started):
    """A Unit whose state the test sets."""

    def __init__(self, unit: Unit, now: State) -> None:
        self.unit = unit
        self.now = now
        self.said = ""

    @property
    def pid(self) -> int:
        return 0

    def state(self) -> State:
        return self.now

    def last_words(self) -> str:
        return self.said

    def stop(self) -> None:
        self.now = "ended"

    def kill(self) -> None:
        self.now = "ended"


@final
class NullSite(Site):
    """Starts nothing and remembers what it was asked.

    >>> site = NullSite()
    >>> site.start(Unit("mast", "d1", ("127.0.0.1:7801",))).state()
    'ready'
    """

    def __init__(self, first: State = "ready") -> None:
        self.first = first
        self.started: list[NullStarted] = []

    def start(self, unit: Unit) -> Started:
        self.started.append(NullStarted(unit, self.first))
        return self.started[-1]
