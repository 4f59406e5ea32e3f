"""Ratings of films: MovieLens, 100,004 by 671 users, from Debian's r-cran-dslabs. Harper and Konstan 2015, TiiS 5.

The file is R's: an index and blocks compressed one by one, read with the package rdata.
"""

import gzip
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from airserve.learn.metrics import RMSE
from airserve.learn.tasks import Baseline, Data, Split, TaskError, divide, folders
from airserve.model import Array

USUAL = "/usr/lib/R/site-library/dslabs/data"
VALIDATION, TEST = 10_000, 10_000
SHRINK = 5.0  # ratings of the mean that a bias is drawn to zero by


def load() -> Data:
    """Pairs of a user and a film, int32, and the rating from 0.5 to 5: 80,004 to train on, 10,000 to test."""
    pairs, ratings = read(folder())
    validation, test, train = divide(pairs, ratings, (VALIDATION, TEST))
    users, films = (pairs.max(axis=0) + 1).tolist()
    return Data("movielens", (), train, validation, test, ids=(users, films), loss="squared-error", metric=RMSE)


def baseline(data: Data) -> Baseline:
    """The mean and a bias of every film and every user, drawn to zero where ratings are few."""
    return Baseline("user and film biases", data.metric.score(biases(data.train, data.test.inputs), data.test.labels))


def biases(train: Split, pairs: Array, rounds: int = 10) -> Array:
    """Ratings, shape (n, 1): mean + bias of the film + bias of the user, by turns each the shrunk mean of the rest."""
    mean = train.labels.mean(dtype=np.float64)
    bias = [np.zeros(k) for k in train.inputs.max(axis=0).clip(pairs.max(axis=0)) + 1]
    for _ in range(rounds):
        for side in (1, 0):
            rest = train.labels[:, 0] - mean - bias[1 - side][train.inputs[:, 1 - side]]
            ids, many = train.inputs[:, side], len(bias[side])
            bias[side] = np.bincount(ids, rest, many) / (np.bincount(ids, minlength=many) + SHRINK)
    return np.asarray(mean + bias[0][pairs[:, 0]] + bias[1][pairs[:, 1]])[:, None]


def recall_at_ten(data: Data, scores: Array) -> float:
    """Of the films that users rate 4 or more in the test split, the share among their ten best of unseen films.

    `scores` has a row for every user and a column for every film; the mean is over users who have such a film.
    """
    scores = scores.copy()
    for split in (data.train, data.validation):
        scores[split.inputs[:, 0], split.inputs[:, 1]] = -np.inf
    best = np.argpartition(-scores, 10, axis=1)[:, :10]
    liked = data.test.inputs[data.test.labels[:, 0] >= 4]
    shares = []
    for user in np.unique(liked[:, 0]):
        films = liked[liked[:, 0] == user, 1]
        shares.append(np.isin(films, best[user]).mean())
    return float(np.mean(shares))


def folder() -> Path:
    """Where the package's data is. Raises `TaskError` when it is absent."""
    tried = folders("movielens", USUAL)
    found = next((path for path in tried if (path / "Rdata.rdb").is_file() and (path / "Rdata.rdx").is_file()), None)
    if found is None:
        raise TaskError(f"MovieLens is not in {' or '.join(map(str, tried))}: install Debian's package r-cran-dslabs.")
    return found


@cache
def read(folder: Path) -> tuple[Array, Array]:
    """Users and films by number from 0, int32, shape (n, 2), and ratings, float32, shape (n, 1)."""
    try:
        at, size = from_r(gzip.decompress((folder / "Rdata.rdx").read_bytes()))["variables"]["movielens"].tolist()
        block = (folder / "Rdata.rdb").read_bytes()[at : at + size]
        table = from_r(zlib.decompress(block[4:]))  # four bytes say how long it is
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zlib.error) as error:
        raise TaskError(f"{folder} cannot be read: {str(error)[:80]}; install r-cran-dslabs again.") from None
    sides = [np.unique(np.asarray(table[key]), return_inverse=True)[1] for key in ("userId", "movieId")]
    return np.stack(sides, axis=1).astype(np.int32), np.asarray(table["rating"], np.float32)[:, None]


def from_r(data: bytes) -> Any:
    """The object that R serialised. Raises `TaskError` when the package rdata is absent."""
    try:
        import rdata
    except ModuleNotFoundError:
        raise TaskError("MovieLens is read with the package rdata: `pip install rdata`.") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it takes the bytes for what they are
        return rdata.conversion.convert(rdata.parser.parse_data(data))
