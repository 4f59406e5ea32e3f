"""Requests that arrive together, computed together: a dense net takes little more for eight rows than for one.

Nobody waits for a batch by default: it is what the loop has read in one turn. `airserve.serve.warming` says for which
models that is right and pays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol, final

import numpy as np

from airserve.model import Array
from airserve.serve.served import Served, failure


class Unread(ValueError):
    """What was given of a request is not what it seemed to be."""


class Asker(Protocol):
    """What requests came for: it makes arrays of what was given, and is told what became of each request.

    Times are seconds in the queue and at work.
    """

    def inputs(self, given: Sequence[Any]) -> list[Array]:
        """The inputs of requests one after the other, in the order of the signature. Raises `Unread` if one is odd."""

    def unread(self, waiting: Any, given: Any, arrived_s: float) -> None:
        """That one was, and is left to who asks."""

    def answered(self, waiting: Any, outputs: list[Array], queue_s: float, compute_s: float) -> None: ...

    def answered_alike(
        self, waiting: Sequence[Any], outputs: list[Array], queues_s: Sequence[float], compute_s: float
    ) -> None:
        """Requests of as many rows each, whose outputs follow one another."""

    def failed(self, waiting: Any, error: Exception) -> None: ...


_Waiting = tuple[Asker, Any, Any, int, float]  # who asks, for what, what was given, its rows, when it arrived


@final
class Gatherer:
    """The requests to a version of a model that have come in this turn of the loop. Made inside it."""

    def __init__(self, served: Served) -> None:
        self._loop = asyncio.get_running_loop()
        self._served = served
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, asker: Asker, waiting: Any, given: Any, rows: int, arrived_s: float) -> None:
        """Computes a request of `rows` samples with what else comes, and tells `asker` of `waiting`."""
        if not self._waiting:
            if self._served.max_wait_s:
                self._timer = self._loop.call_later(self._served.max_wait_s, self._compute)
            else:
                self._loop.call_soon(self._compute)
        self._waiting.append((asker, waiting, given, rows, arrived_s))
        if self._timer is not None and sum([one[3] for one in self._waiting]) >= self._served.max_batch:
            self._timer.cancel()
            self._timer = None
            self._loop.call_soon(self._compute)

    def _compute(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, []
        limit, at, rows = self._served.max_batch, 0, 0
        for k, (_, _, _, more, _) in enumerate(waiting):
            if rows and rows + more > limit:
                self._together(waiting[at:k])
                at, rows = k, 0
            rows += more
        self._together(waiting[at:] if at else waiting)

    def _together(self, batch: list[_Waiting]) -> None:
        served, count = self._served, len(batch)
        askers, waiting, given, each, arrived_s = zip(*batch, strict=True)
        asker, rows = askers[0], sum(each)
        alike = count > 1 and askers.count(asker) == each.count(each[0]) == count
        begun_s = time.monotonic()
        try:
            if alike or count == 1:
                inputs = asker.inputs(given)
            else:
                apart = [one.inputs((its,)) for one, its in zip(askers, given, strict=True)]
                inputs = [np.concatenate(arrays) for arrays in zip(*apart, strict=True)]
            outputs = served.work(inputs)
            if count > 1 and any(output.shape[:1] != (rows,) for output in outputs):
                raise ValueError("rows went astray")  # nobody knows whose they are
        except Exception as error:
            if count > 1:  # of one of them; the others are not to suffer for it
                for one in batch:
                    self._together([one])
            elif isinstance(error, Unread):
                asker.unread(waiting[0], given[0], arrived_s[0])
            else:
                explained = served.explained(error)
                served.meter.failed(failure(explained))
                asker.failed(waiting[0], explained)
            return
        compute_s = time.monotonic() - begun_s
        queues_s = [begun_s - at_s for at_s in arrived_s]
        served.meter.answered_together(queues_s, compute_s, rows)
        if alike:
            asker.answered_alike(waiting, outputs, queues_s, compute_s)
            return
        at = 0
        for one, its, many, queue_s in zip(askers, waiting, each, queues_s, strict=True):
            own = outputs if count == 1 else [output[at : at + many] for output in outputs]
            one.answered(its, own, queue_s, compute_s)
            at += many
