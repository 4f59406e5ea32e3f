"""Open set: a task is data, a split, a metric and samples; one file each with `load() -> Data`."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airserve.errors import UserError
from airserve.model import Array, Samples

CALIBRATION = 200  # rows of the validation split that calibrate an int8 variant


class TaskError(UserError, LookupError):
    """Data that cannot be had; one sentence that names what to install."""


@dataclass(frozen=True)
class Split:
    """Inputs as the sensor gives them, uint8, shape (n, height, width), and labels, int64, shape (n,)."""

    inputs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A task's three splits: train fits, validation stops and calibrates, test scores and is touched once."""

    short: str  # as in the name of a Model, "resnet8-fashion"
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    passes: int = 1  # over the train split in an epoch: more where it is small

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
    def samples(self) -> Samples:
        """Rows of the validation split to calibrate on, then the whole test split to score on and to drive.

        Scores of a Model, of its variants and of its cuts are thus on the same rows, which calibration never sees.
        """
        k = min(CALIBRATION, len(self.validation))
        return Samples(
            np.concatenate([self.validation.inputs[:k], self.test.inputs]),
            np.concatenate([self.validation.labels[:k], self.test.labels]),
            calibration=k,
        )


def divide(inputs: Array, labels: Array, sizes: tuple[int, ...], seed: int = 0) -> list[Split]:
    """Splits of the given sizes, in one order drawn from the seed; what is left over comes last.

    >>> [len(split) for split in divide(np.zeros((10, 8, 8)), np.zeros(10), (2, 3))]
    [2, 3, 5]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    return [Split(inputs[rows], labels[rows]) for rows in np.split(order, np.cumsum(sizes))]


def folders(name: str, *usual: str) -> list[Path]:
    """Where a task's files may be: AIRSERVE_DATA/NAME when that is set, then the usual folders."""
    own = os.environ.get("AIRSERVE_DATA")
    return [*([Path(own) / name] if own else []), *map(Path, usual)]
