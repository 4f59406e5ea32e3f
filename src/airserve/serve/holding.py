"""The files of what is served, held open: a worker that starts once a file was replaced still serves what others do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import final

from airserve.model import ModelError
from airserve.serve.offering import Offer, stamp

Seen = tuple[str, tuple[int, ...]]


@final
class Holder:
    """Open files by path and stamp; processes that are forked have them too."""

    def __init__(self) -> None:
        self._open: dict[Seen, int] = {}

    def hold(self, offers: Sequence[Offer]) -> None:
        """Open the files of these versions, where they are still as they were seen."""
        for offer in offers:
            seen = _seen(offer)
            if seen in self._open:
                continue
            with contextlib.suppress(OSError):
                opened = os.open(seen[0], os.O_RDONLY)
                if _stamp(f"/proc/self/fd/{opened}") == offer.stamp:
                    self._open[seen] = opened
                else:
                    os.close(opened)

    def keep(self, offers: Sequence[Offer]) -> None:
        """Close the files of all other versions."""
        wanted = {_seen(offer) for offer in offers}
        for seen in [seen for seen in self._open if seen not in wanted]:
            os.close(self._open.pop(seen))

    def moved(self, offers: Sequence[Offer]) -> dict[Offer, str]:
        """Where the files lie of those versions whose own path holds something else by now."""
        found = {}
        for offer in offers:
            path, seen = _seen(offer)
            if (held := self._open.get((path, seen))) is not None and _stamp(path) != seen:
                found[offer] = f"/proc/self/fd/{held}"
        return found


def _stamp(path: str) -> tuple[int, ...]:
    try:
        return stamp(path)
    except ModelError:
        return ()


def _seen(offer: Offer) -> Seen:
    return offer.endpoint.functions[0].path, offer.stamp
