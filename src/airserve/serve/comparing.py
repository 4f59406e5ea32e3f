"""How right a run's answers were, and how right the original Model's are to the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from airserve import answers
from airserve.contract import Asker, Word
from airserve.model import Array, Engine
from airserve.samples import Samples
from airserve.serve.asking import Asked

DRAWS = 400  # of the samples, for the interval of a drop
LEAST = 10  # samples for an interval: of fewer too many draws are alike
EQUAL = 1e-9  # drops that differ by no more are the same, as in planning


@dataclass(frozen=True)
class Score:
    """How right the answers were, by a metric of answers.judge: against labels, else the original Model's answers.

    `before` is the original's score on the same samples; `drop_interval` holds `before` less `value` with 95 %. Both
    are None where the original was not asked, the interval for fewer samples than `LEAST` as well.
    """

    metric: str
    value: float
    n: int  # distinct samples that were answered
    before: float | None = None
    drop_interval: tuple[float, float] | None = None

    @property
    def drop(self) -> float | None:
        return None if self.before is None else self.before - self.value


def score(asker: Asker, samples: Samples, asked: Asked, *, rng: Generator) -> Score:
    """How right the answers to the distinct samples were; a sample counts once, its answers are averaged."""
    done = np.isfinite(asked.done_s)
    rows, where, count = np.unique(asked.row[done], return_inverse=True, return_counts=True)
    found = asked.answer[done] if asked.numbers else asked.answer[done].astype(np.int64)
    labelled = samples.labels is not None
    original = _original(asker.reference, samples.inputs[rows]) if asker.reference and len(rows) else None
    wanted = np.zeros(0) if not len(rows) else original if samples.labels is None else samples.labels[rows]
    assert wanted is not None  # an Asker without labels has a reference

    def now(drawn: Array) -> float:
        return answers.judge(found, wanted[where], labelled, (drawn / count)[where])[1]

    once = np.ones(len(rows))
    metric, value = answers.judge(found, wanted[where], labelled, 1 / count[where])
    if original is None:
        return Score(metric, value, len(rows))

    def before(drawn: Array) -> float:
        return answers.judge(original, wanted, labelled, drawn)[1]

    if len(rows) < LEAST:
        return Score(metric, value, len(rows), before(once))
    return Score(metric, value, len(rows), before(once), _interval(lambda drawn: before(drawn) - now(drawn), once, rng))


def _original(path: str, inputs: Array) -> Array:
    """What the original Model answers to each sample, asked one by one as it was served."""
    engine = Engine(path)
    return np.array([answers.read(engine.run([inputs[k : k + 1]])[0][None])[0] for k in range(len(inputs))])


def _interval(drop: Callable[[Array], float], once: Array, rng: Generator) -> tuple[float, float]:
    """The 95 % interval of a drop, its samples drawn again: the same for both scores, since they are paired."""
    n = len(once)
    drops = [drop(np.bincount(rng.integers(0, n, n), minlength=n).astype(float)) for _ in range(DRAWS)]
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)


def judge_drop(allowed: float | None, planned: float | None, run: Score | None) -> Word | None:
    """Whether a promise of accuracy held; None where none was made, or nothing is known.

    A run breaks it where the whole interval of the drop is above what is allowed. Where the interval leaves it open,
    for few samples tell little, the drop that was `planned` on all held samples decides.

    >>> judge_drop(0.01, 0.0, Score("accuracy", 0.90, 40, 0.925, (0.0, 0.075)))
    'kept'
    >>> judge_drop(0.01, 0.0, Score("accuracy", 0.50, 40, 0.925, (0.3, 0.575)))
    'not kept'
    """
    if allowed is None:
        return None
    by_plan = planned is not None and planned <= allowed + EQUAL
    if run is None or run.drop_interval is None:
        return None if planned is None else "kept" if by_plan else "not kept"
    low, high = run.drop_interval
    if low > allowed + EQUAL:
        return "not kept"
    return "kept" if by_plan or (planned is None and high <= allowed + EQUAL) else "too close to call"
