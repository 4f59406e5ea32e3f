"""Scores and times of graphs, without torch: what compression and import measure."""

import time
from collections.abc import Callable

import numpy as np

from airserve import answers
from airserve.model import Array, Engine

BATCH = 50
RUNS, ASIDE = 200, 10  # timed runs at batch 1, and runs before them
UNDISTURBED = 10  # percentile of the times that stands for what a graph needs when nothing else runs


def read(engine: Engine, inputs: Array, done: Callable[[int], None] = lambda rows: None) -> Array:
    """What each row's first output is judged by (answers.read), shape (n,). `done` hears of every batch."""
    found = []
    for at in range(0, len(inputs), BATCH):
        batch = np.ascontiguousarray(inputs[at : at + BATCH])
        found.append(answers.read(engine.run([batch])[0]))
        done(len(batch))
    return np.concatenate(found)


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
