"""How many threads a step is computed with: measured, for small nets lose by a second one."""

import os
import time
from collections.abc import Callable

import numpy as np
import torch

STEPS, ASIDE, ROUNDS = 4, 2, 5


def fastest(step: Callable[[], object], most: int | None = None) -> tuple[int, dict[int, float]]:
    """The number of threads, up to `most` (the cores), with which a step takes the least time, and ms by number.

    Numbers take turns, so that a busy machine harms all alike; one counts by the median of its rounds. More threads
    must gain a tenth to be taken.
    """
    before, many = torch.get_num_threads(), sorted({1, *_powers(most or len(os.sched_getaffinity(0)))})
    spent_ms: dict[int, list[float]] = {threads: [] for threads in many}
    try:
        for _ in range(ROUNDS if len(many) > 1 else 0):
            for threads in many:
                torch.set_num_threads(threads)
                for _ in range(ASIDE):
                    step()
                started_s = time.perf_counter()
                for _ in range(STEPS):
                    step()
                spent_ms[threads].append((time.perf_counter() - started_s) / STEPS * 1e3)
    finally:
        torch.set_num_threads(before)
    found = {threads: round(float(np.median(times)), 3) for threads, times in spent_ms.items() if times}
    best = 1
    for threads, ms in found.items():
        if ms < 0.9 * found[best]:
            best = threads
    return best, found


def _powers(most: int) -> list[int]:
    """
    >>> _powers(6)
    [1, 2, 4, 6]
    """
    return sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})
