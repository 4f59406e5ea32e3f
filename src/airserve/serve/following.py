"""A service follows the registry: where an alias moves, what it means is served, and nobody needs to ask for it.

The registry's files are looked at, not opened; only where they were written is it asked, in a process of its own as at
the start. A source that names a Model without version means its latest as of the start, or of the last load: there
aliases alone are followed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from airserve.model import ModelError
from airserve.serve import offering
from airserve.serve.inquiring import Inquiry
from airserve.serve.offering import Offer

LOOK_S = 0.5  # between two looks
REST_S = 2.0  # between two questions, for the registry is written by much else

Stamp = tuple[tuple[int, int], ...]


@final
class Follower:
    """Looks after the sources that the registry holds."""

    def __init__(self, sources: Sequence[str], cores: int = 1) -> None:
        self._cores = cores  # of each worker
        self._sources = [source for source in sources if offering.registered(source)]
        self._known = _stamp() if self._sources else ()
        self._next_s = 0.0
        self._asking: dict[str, Inquiry] = {}

    def look(self, now_s: float, offered: Sequence[Offer]) -> list[Offer]:
        """What some of these have become; it takes no time. `offered` says what was meant before."""
        moved = [found for source in list(self._asking) if (found := self._heard(source, offered)) is not None]
        if self._sources and not self._asking and now_s >= self._next_s:
            self._next_s = now_s + LOOK_S
            if (stamp := _stamp()) != self._known:
                self._known, self._next_s = stamp, now_s + REST_S
                for offer in offered:
                    if offer.source in self._sources:
                        self._asking[offer.source] = Inquiry(_meant(offer))
        return moved

    def close(self) -> None:
        for inquiry in self._asking.values():
            inquiry.close()
        self._asking.clear()

    def _heard(self, source: str, offered: Sequence[Offer]) -> Offer | None:
        """What a source means now, where that is heard of and is another than before."""
        if not self._asking[source].done():
            return None
        try:
            said = self._asking.pop(source).answer()
        except ModelError:  # its alias is gone: what is served stays
            return None
        before = next((offer for offer in offered if offer.source == source), None)
        if before is None:  # unloaded
            return None
        try:
            found = offering.offered(offering.answered(said, self._cores), source)
        except ModelError as error:
            print(f"{source} is not followed: {error}", file=sys.stderr, flush=True)
            return None
        return found if replace(found, slot=before.slot) != before else None


def _meant(offer: Offer) -> str:
    """
    >>> from airserve.contract import Endpoint
    >>> [_meant(Offer(Endpoint("m", (), version="3"), (), source=source)) for source in ("m", "m/int8", "m@live")]
    ['m@3', 'm@3/int8', 'm@live']
    """
    name, _, variant = offer.source.partition("/")
    if "@" in name:
        return offer.source
    return f"{name}@{offer.endpoint.version}" + (f"/{variant}" if variant else "")


def _stamp() -> Stamp:
    """What tells the registry's files from what they were; a journal that holds nothing is none."""
    home = Path(
        os.environ.get("AIRSERVE_HOME") or ".airserve"
    )  # as airserve.registry has it, which brings its database
    found = []
    for name in ("registry.db", "registry.db-wal"):
        try:
            about = (home / name).stat()
        except OSError:
            continue
        if about.st_size:
            found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)
