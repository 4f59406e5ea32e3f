"""Open set: a way to start what a Deployment wants; each file has one final `Site`."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from airserve.contract import Deployment, to_plain

RELAY = "@air"  # no site can have this name

State = Literal["starting", "ready", "ended"]


@dataclass(frozen=True, order=True)
class Unit:
    """Something that runs or does not: a site's process or the relay. Another digest is another Unit."""

    key: str  # SiteProcess.key, or RELAY
    digest: str
    addresses: tuple[str, ...]  # that it listens at


class Started(ABC):
    """A Unit that was started."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process on this machine, 0 where it has none."""

    @abstractmethod
    def state(self) -> State:
        """Where it stands now; once "ended" it stays so."""

    @abstractmethod
    def last_words(self) -> str:
        """The last line that it said, for the user."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to finish what it does and end; harmless when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """End it now; harmless when it has ended."""


class Site(ABC):
    """A way to start Units."""

    @abstractmethod
    def start(self, unit: Unit) -> Started:
        """Start a Unit and return at once."""


def units(deployment: Deployment) -> frozenset[Unit]:
    """What a Deployment wants to run."""
    wanted = [Unit(one.key, _digest(one), (f"{one.host}:{one.port}",)) for one in deployment.processes]
    if deployment.air is not None:
        listens = tuple(f"{site.host}:{site.port}" for site in deployment.air.sites)
        wanted.append(Unit(RELAY, _digest(deployment.air), listens))
    return frozenset(wanted)


def _digest(part: object) -> str:
    return hashlib.sha256(json.dumps(to_plain(part), sort_keys=True).encode()).hexdigest()
