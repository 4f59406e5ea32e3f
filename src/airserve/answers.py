"""Answers: what a Model is judged by, a class or its one number, and how right they are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WORST = -1.0  # of an r2: what is worse, and what is no number, says no more


def read(output: Array) -> Array:
    """Of each row of a first output, (n, ...), the number where there is one, else where the largest is; shape (n,).

    One of an integer type stays one, for a class may be said by its label.

    >>> read(np.array([[0.1, 0.9], [0.8, 0.2]])), read(np.array([[3.5], [4.0]])), read(np.array([True, False]))
    (array([1, 0]), array([3.5, 4. ]), array([1, 0]))
    """
    rows = output.reshape(len(output), -1)
    if rows.shape[1] != 1:
        return np.asarray(rows.argmax(axis=1))
    return np.asarray(rows[:, 0], np.int64 if rows.dtype.kind in "biu" else np.float64)


def judge(found: Array, wanted: Array, labelled: bool, weights: Array | None = None) -> tuple[str, float]:
    """Metric and score of answers as `read` gives them, against labels or against a reference Model's answers.

    Of classes the share that is right: "accuracy", or "agreement" without labels. Of numbers "r2", the share of the
    variance of what is wanted that they explain: 1 when all are right, 0 for its mean; without labels too. Integers
    are classes where all that is wanted is whole.

    >>> judge(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), labelled=True)
    ('accuracy', 0.75)
    >>> judge(np.array([1.0, 2.0, 4.0]), np.array([[1.0], [2.0], [3.0]]), labelled=True)
    ('r2', 0.5)
    """
    wanted = wanted.reshape(-1)
    if found.dtype.kind != "f" and np.array_equal(wanted, np.round(wanted)):
        metric = "accuracy" if labelled else "agreement"
        return metric, float(np.average(found == wanted, weights=weights)) if len(found) else float("nan")
    if not len(found):
        return "r2", float("nan")
    wrong = np.average((found - wanted) ** 2, weights=weights)
    spread = np.average((wanted - np.average(wanted, weights=weights)) ** 2, weights=weights)
    if not np.isfinite(wrong) or not spread:
        return "r2", 1.0 if wrong == 0 else WORST
    return "r2", max(float(1 - wrong / spread), WORST)
