"""The files of what is served, held open: a worker that loads one that was replaced meanwhile has what others have.

A supervisor holds them, and workers open them by its `/proc/PID/fd`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import final

from airserve.serve.offering import Offer
from airserve.serve.rereading import stamp_if_any

Seen = tuple[str, tuple[int, ...]]


@final
class Holder:
    """Open files by path and stamp."""

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
                if stamp_if_any(f"/proc/self/fd/{opened}") == offer.stamp:
                    self._open[seen] = opened
                else:
                    os.close(opened)

    def keep(self, offers: Sequence[Offer]) -> None:
        """Close the files of all other versions."""
        wanted = {_seen(offer) for offer in offers}
        for seen in [seen for seen in self._open if seen not in wanted]:
            os.close(self._open.pop(seen))

    def held(self, offers: Sequence[Offer]) -> list[str]:
        """Where another process of this user finds each version's file, whatever its own path holds by then.

        "" for one that was replaced before it could be opened, or was written over where it lies.
        """
        return [self._found(offer) for offer in offers]

    def _found(self, offer: Offer) -> str:
        opened = self._open.get(_seen(offer))
        if opened is None or stamp_if_any(f"/proc/self/fd/{opened}") != offer.stamp:
            return ""
        return f"/proc/{os.getpid()}/fd/{opened}"


def _seen(offer: Offer) -> Seen:
    return offer.endpoint.functions[0].path, offer.stamp
