"""Open set: a task is data, a split, a loss and a metric, `load() -> Data`, and what to beat, `baseline(data)`.

Where a score is not a mean over rows of the test split, a task has `assess(parts, data, registry) -> scores by name`,
the metric's among them: `parts` are the exported graphs as engines, {"": the whole net} for most, and what is scored
is thus what is served. Where answers are judged by another Model, `judge(registry)` gives its engine, and the baseline
is `baseline(data, engine)`. Where answers are to be looked at, `sheet(parts, data)` gives some of them as a PNG.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from airserve.errors import UserError
from airserve.learn.metrics import ACCURACY, Metric
from airserve.model import Array
from airserve.samples import Samples

CALIBRATION = 200  # rows of the validation split that calibrate an int8 variant


class TaskError(UserError, LookupError):
    """Data that cannot be had or learnt from; one sentence that says what, where and what next."""


@dataclass(frozen=True)
class Split:
    """Inputs as the sensor gives them, shape (n, ...), and labels, what is to be found, shape (n,) or (n, ...).

    Inputs are uint8 (pictures), float32 (rows of a table) or int32 (ids: words of a text, 0 after its end; pairs).
    Labels are int64 where they are classes or symbols (n, length), float32 where they are numbers.
    """

    inputs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Baseline:
    """What a Model must beat on the test split: how it was found, in a few words, and its score."""

    name: str
    score: float


@dataclass(frozen=True)
class Data:
    """A task's three splits: train fits, validation stops and calibrates, test scores and is touched once."""

    short: str  # as in the name of a Model, "resnet8-fashion"
    classes: tuple[str, ...]  # none where labels are numbers
    train: Split
    validation: Split
    test: Split
    passes: int = 1  # over the train split in an epoch: more where it is small
    ids: tuple[int, ...] = ()  # how many ids there are, as a net's Form says
    words: tuple[str, ...] = ()  # what the ids of a text stand for
    loss: str = "cross-entropy"  # of losses.LOSSES
    metric: Metric = ACCURACY
    answer: str = "row"  # of nets.ANSWERS: what is asked for
    symbols: int = 0  # in which answers are written, where they are texts; a label of -100 does not count
    scale: tuple[float, float] | None = (
        None  # middle and unit of the inputs; None: mean and deviation of the train split
    )
    metadata: Mapping[str, str] = field(default_factory=dict)  # goes into every graph's file: a tokenizer

    @property
    def output(self) -> str:
        """What the graph's output is called."""
        return "logits" if self.classes else "value"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all inputs and labels in their splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for array in (split.inputs, split.labels):
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def samples(self) -> Samples | None:
        """Rows of the validation split to calibrate on, then the whole test split to score on and to drive.

        Scores of a Model, of its variants and of its cuts are thus on the same rows, which calibration never sees.
        None where an answer is neither a class nor one number (answers.py), by which the platform could judge it.
        """
        number = self.answer == "row" and self.train.labels.shape[1:] == (1,)
        if not number and (not self.classes or self.answer not in ("row", "move")):
            return None
        k = min(CALIBRATION, len(self.validation))
        labels = np.concatenate([self.validation.labels[:k], self.test.labels]) if self.answer == "row" else None
        return Samples(np.concatenate([self.validation.inputs[:k], self.test.inputs]), labels, calibration=k)

    def check(self) -> None:
        """Raises `TaskError` when there is nothing to learn from: an empty split, no class, no number."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, split in splits.items():
            if not len(split) or len(split.inputs) != len(split):
                raise TaskError(
                    f"the {name} split of {self.short} has {len(split.inputs)} inputs and {len(split)} labels; "
                    "it needs as many, and at least one."
                )
            for what, rows in (("input", split.inputs), ("label", split.labels)):
                if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                    row = int(np.argwhere(~np.isfinite(rows))[0, 0])
                    raise TaskError(f"the {what} of row {row} of the {name} split of {self.short} is no finite number.")
            if self.classes and self.answer != "move" and split.labels.dtype.kind not in "iu":
                raise TaskError(
                    f"the labels of the {name} split of {self.short} are {split.labels.dtype}; classes are whole."
                )
            if self.classes and (split.labels.min() < 0 or split.labels.max() >= len(self.classes)):
                row = int(np.argmax((split.labels < 0) | (split.labels >= len(self.classes))))
                raise TaskError(
                    f"label {split.labels.ravel()[row]} of row {row} of the {name} split of {self.short} is no class; "
                    f"there are {len(self.classes)}, from 0."
                )


def divide(inputs: Array, labels: Array, sizes: tuple[int, ...], seed: int = 0) -> list[Split]:
    """Splits of the given sizes, in one order drawn from the seed; what is left over comes last.

    >>> [len(split) for split in divide(np.zeros((10, 8, 8)), np.zeros(10), (2, 3))]
    [2, 3, 5]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    return [Split(inputs[rows], labels[rows]) for rows in np.split(order, np.cumsum(sizes))]


def nearest_mean(data: Data) -> Baseline:
    """The class whose mean over the train split is nearest to the input."""
    rows = [split.inputs.reshape(len(split), -1).astype(np.float32) for split in (data.train, data.test)]
    known = np.unique(data.train.labels)  # a class without a row to learn from has no mean
    means = np.stack([rows[0][data.train.labels == k].mean(axis=0) for k in known])
    distances = np.full((len(rows[1]), len(data.classes)), np.inf)
    distances[:, known] = (means**2).sum(axis=1) - 2 * rows[1] @ means.T  # squared, less what is the same for all
    return Baseline("nearest class mean", data.metric.score(-distances, data.test.labels))


def folders(name: str, *usual: str) -> list[Path]:
    """Where a task's files may be: AIRSERVE_DATA/NAME when that is set, then the usual folders."""
    own = os.environ.get("AIRSERVE_DATA")
    return [*([Path(own) / name] if own else []), *map(Path, usual)]
