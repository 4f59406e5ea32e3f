"""Metrics: what is said of a Model on rows that it has not seen; each is a mean over rows and what is made of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from airserve.model import Array


@dataclass(frozen=True)
class Metric:
    """`of_rows` takes outputs and targets, (n, ...) each, and gives n numbers; `of_mean` makes the score of their mean.

    Batches can thus be scored one by one, whatever their outputs take of memory. Of a score that is not found row by
    row, `of_rows` is None: the task finds it from the exported graphs (`assess`).

    >>> RMSE.score(np.array([[3.0], [5.0]]), np.array([[3.0], [3.0]]))
    1.4142135623730951
    """

    name: str
    of_rows: Callable[[Array, Array], Array] | None = None
    of_mean: Callable[[float], float] = float
    less_is_better: bool = False

    def score(self, outputs: Array, targets: Array) -> float:
        if self.of_rows is None:
            raise TypeError(f"{self.name} is not a mean over rows")
        return self.of_mean(float(np.mean(self.of_rows(outputs, targets))))

    def beats(self, score: float, other: float) -> bool:
        """Whether a score is at least as good as another."""
        return score <= other if self.less_is_better else score >= other


def correct(outputs: Array, targets: Array) -> Array:
    """Whether the largest output is that of the class; the first of equals.

    >>> correct(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    array([1., 0.])
    """
    return np.asarray(outputs.argmax(axis=-1) == targets, np.float64)


def squared(outputs: Array, targets: Array) -> Array:
    """The squared error of each row, its mean where a row has several numbers."""
    error = np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)
    return np.asarray((error**2).reshape(len(error), -1).mean(axis=1))


def recalls(found: Array, wanted: Array, classes: int) -> list[float | None]:
    """Of each class the share of its rows that were found; None where a class has no row.

    >>> recalls(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    [1.0, 0.5, None]
    """
    return [float(np.mean(found[wanted == k] == k)) if (wanted == k).any() else None for k in range(classes)]


ACCURACY = Metric("accuracy", correct)
RMSE = Metric("rmse", squared, lambda mean: float(np.sqrt(mean)), less_is_better=True)
