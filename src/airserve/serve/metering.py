"""What a service has counted: a table in memory that its workers share, with numbers of its own for each worker.

A worker writes only its own part and a reader adds up all parts, so nothing is locked, nothing is lost when a worker
dies, and every worker tells the same.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from airserve.model import Array
from airserve.serve.tallying import Tallies

BUCKETS_S = (
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip
CANCELLED = "cancelled"  # whoever asked went away
# The client's, the engine's, for want of room, of time, and nobody's.
FAILURES = ("refused", "failed", "rejected", "late", CANCELLED)
ANSWERED, ROWS, QUEUE_S, COMPUTE_S, RUNS, FAILED = 0, 1, 2, 3, 4, 5
BUCKET = FAILED + len(FAILURES)
CELLS = BUCKET + len(BUCKETS_S) + 1
SLOTS = 256  # versions of models that one service may hold at a time


class Counted(NamedTuple):
    """What was counted of one version of a model since the service began, over all workers."""

    answered: int
    rows: int
    queue_s: float
    compute_s: float
    failures: dict[str, int]
    runs: int  # of the engine
    buckets: tuple[int, ...]  # answers by latency, one number for each of BUCKETS_S and one beyond

    @property
    def failed(self) -> int:
        """But for those that nobody waited for any more."""
        return sum(self.failures.values()) - self.failures[CANCELLED]


@final
class Meter:
    """One worker's numbers of one version of a model."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: memoryview[float], at: int) -> None:
        self._cells = cells
        self._at = at

    def answered(self, queue_s: float, compute_s: float, rows: int = 1) -> None:
        cells, at = self._cells, self._at
        cells[at] += 1.0
        cells[at + ROWS] += rows
        cells[at + QUEUE_S] += queue_s
        cells[at + COMPUTE_S] += compute_s
        cells[at + RUNS] += 1.0
        cells[at + BUCKET + bisect_left(BUCKETS_S, queue_s + compute_s)] += 1.0

    def answered_together(self, queues_s: Sequence[float], compute_s: float, rows: int) -> None:
        """Requests that one run has answered; each has taken as long as the run."""
        cells, at, count = self._cells, self._at, len(queues_s)
        cells[at] += count
        cells[at + ROWS] += rows
        cells[at + QUEUE_S] += sum(queues_s)
        cells[at + COMPUTE_S] += count * compute_s
        cells[at + RUNS] += 1.0
        least, most = [bisect_left(BUCKETS_S, end(queues_s) + compute_s) for end in (min, max)]
        if least == most:  # nearly always: they came within one turn of the loop
            cells[at + BUCKET + least] += count
            return
        for queue_s in queues_s:
            cells[at + BUCKET + bisect_left(BUCKETS_S, queue_s + compute_s)] += 1.0

    def failed(self, kind: str) -> None:
        self._cells[self._at + FAILED + FAILURES.index(kind)] += 1.0


@final
class Table:
    """The numbers of `workers` processes. Made before they are forked, it is one table to all of them.

    >>> table = Table(workers=2, slots=1)
    >>> for worker in (0, 1):
    ...     table.meter(worker, 0).answered(0.001, 0.002)
    >>> table.counted(0).answered, table.counted(0).queue_s
    (2, 0.002)
    """

    def __init__(self, workers: int = 1, slots: int = SLOTS) -> None:
        self._shared = mmap.mmap(-1, 8 * 2 * workers * slots * CELLS)
        self._cells: memoryview[float] = memoryview(self._shared).cast("d")
        self._array: Array = np.frombuffer(self._shared, np.float64).reshape(2 * workers, slots, CELLS)
        self._slots = slots
        self._settings: memoryview[float] = memoryview(mmap.mmap(-1, 8 * 2 * slots)).cast("d")
        self.tallies = Tallies(workers, slots)  # of language models
        self.begun_s = time.time()

    def meter(self, worker: int, slot: int, aside: bool = False) -> Meter:
        """The numbers that one thread of a worker writes: the loop's, or `aside` of it another."""
        return Meter(self._cells, ((2 * worker + aside) * self._slots + slot) * CELLS)

    def batching(self, slot: int) -> memoryview[float]:
        """What was set while it runs: the most rows of a batch and the seconds that a request waits for others.

        0 rows: as the model's first runs say.
        """
        return self._settings[2 * slot : 2 * slot + 2]

    def clear(self, slot: int) -> None:
        """Forget what a slot held, before another version of a model gets it."""
        self._array[:, slot] = 0.0
        self._settings[2 * slot] = self._settings[2 * slot + 1] = 0.0
        self.tallies.clear(slot)

    def counted(self, slot: int) -> Counted:
        part = self._array[:, slot]
        total: list[Any] = part.sum(axis=0).tolist()
        return Counted(
            int(total[ANSWERED]),
            int(total[ROWS]),
            total[QUEUE_S],
            total[COMPUTE_S],
            {kind: int(total[FAILED + k]) for k, kind in enumerate(FAILURES)},
            int(total[RUNS]),
            tuple(int(count) for count in total[BUCKET:]),
        )
