"""Scores and times of graphs, without torch: what compression and import measure."""

import time
from collections.abc import Callable

import numpy as np

from airserve.model import Array, Engine

BATCH = 50
RUNS, ASIDE = 200, 10  # timed runs at batch 1, and runs before them
UNDISTURBED = 10  # percentile of the times that stands for what a graph needs when nothing else runs


def top(engine: Engine, inputs: Array, done: Callable[[int], None] = lambda rows: None) -> Array:
    """The index of the largest first output of each row, shape (n,). `done` hears of every batch."""
    found = []
    for at in range(0, len(inputs), BATCH):
        batch = np.ascontiguousarray(inputs[at : at + BATCH])
        output = engine.run([batch])[0]
        found.append(output.reshape(len(batch), -1).argmax(axis=1))
        done(len(batch))
    return np.concatenate(found)


def agreement(found: Array, wanted: Array) -> float:
    """The share of rows that are equal.

    >>> agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    0.75
    """
    return float(np.mean(found == wanted))


def paired_ms(one: Engine, other: Engine, inputs: Array) -> tuple[float, float]:
    """CPU milliseconds of two engines at batch 1, undisturbed; in turn, so that a busy machine harms both alike."""
    rows = [np.ascontiguousarray(inputs[k % len(inputs)][None]) for k in range(ASIDE + RUNS)]
    spent_ms = np.empty((ASIDE + RUNS, 2))
    for k, row in enumerate(rows):
        for which, engine in enumerate((one, other)):
            started_ns = time.process_time_ns()
            engine.run([row])
            spent_ms[k, which] = (time.process_time_ns() - started_ns) / 1e6
    first, second = np.percentile(spent_ms[ASIDE:], UNDISTURBED, axis=0)
    return float(first), float(second)
