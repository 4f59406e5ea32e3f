"""Requests that arrive together, computed together: a dense net takes little more for eight rows than for one.

Nobody waits for a batch by default: it is what the loop has read in one turn. `airserve.serve.warming` says for which
models that is right and pays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, final

import numpy as np

from airserve.model import Array
from airserve.serve.served import Served, failure


class Asker(Protocol):
    """What requests came for: it is told what became of each, with the seconds in the queue and those at work."""

    def answered(self, waiting: Any, outputs: list[Array], queue_s: float, compute_s: float) -> None: ...

    def answered_alike(
        self, waiting: Sequence[Any], outputs: list[Array], queues_s: Sequence[float], compute_s: float
    ) -> None:
        """Requests of as many rows each, whose outputs follow one another."""

    def failed(self, waiting: Any, error: Exception) -> None: ...


class _Waiting(NamedTuple):
    asker: Asker
    waiting: Any
    ordered: Sequence[Array]
    rows: int
    arrived_s: float


@final
class Gatherer:
    """The requests to a version of a model that have come in this turn of the loop. Made inside it."""

    def __init__(self, served: Served) -> None:
        self._loop = asyncio.get_running_loop()
        self._served = served
        self._waiting: list[_Waiting] = []
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, asker: Asker, waiting: Any, ordered: Sequence[Array], rows: int, arrived_s: float) -> None:
        """Computes these checked inputs of `rows` samples with what else comes, and tells `asker` of `waiting`."""
        if not self._waiting:
            if self._served.max_wait_s:
                self._timer = self._loop.call_later(self._served.max_wait_s, self._compute)
            else:
                self._loop.call_soon(self._compute)
        self._waiting.append(_Waiting(asker, waiting, ordered, rows, arrived_s))
        self._rows += rows
        if self._timer is not None and self._rows >= self._served.max_batch:
            self._timer.cancel()
            self._timer = None
            self._loop.call_soon(self._compute)

    def _compute(self) -> None:
        self._timer = None
        waiting, self._waiting, rows, self._rows = self._waiting, [], self._rows, 0
        limit, at = self._served.max_batch, 0
        if rows <= limit:
            self._together(waiting, rows)
            return
        while at < len(waiting):
            end, rows = at + 1, waiting[at].rows
            while end < len(waiting) and rows + waiting[end].rows <= limit:
                rows += waiting[end].rows
                end += 1
            self._together(waiting[at:end], rows)
            at = end

    def _together(self, batch: list[_Waiting], rows: int) -> None:
        served, first = self._served, batch[0]
        begun_s = time.monotonic()
        try:
            inputs = first.ordered
            if len(batch) > 1:
                inputs = [np.concatenate([one.ordered[k] for one in batch]) for k in range(len(inputs))]
            outputs = served.work(inputs)
            if len(batch) > 1 and any(output.shape[:1] != (rows,) for output in outputs):
                raise ValueError("rows went astray")  # nobody knows whose they are
        except Exception as error:
            if len(batch) == 1:
                explained = served.explained(error)
                served.meter.failed(failure(explained))
                first.asker.failed(first.waiting, explained)
            else:  # of one of them; the others are not to suffer for it
                for one in batch:
                    self._together([one], one.rows)
            return
        compute_s = time.monotonic() - begun_s
        queues_s = [begun_s - one.arrived_s for one in batch]
        served.meter.answered_together(queues_s, compute_s, rows)
        asker, each = first.asker, first.rows
        if len(batch) > 1 and rows == each * len(batch) and {one.asker for one in batch} == {asker}:
            asker.answered_alike([one.waiting for one in batch], outputs, queues_s, compute_s)
            return
        at = 0
        for one, queue_s in zip(batch, queues_s, strict=True):
            end = at + one.rows
            own = outputs if len(batch) == 1 else [output[at:end] for output in outputs]
            one.asker.answered(one.waiting, own, queue_s, compute_s)
            at = end
