"""Fashion-MNIST: 70,000 articles of clothing in grey, 28x28. Xiao et al. 2017, arXiv:1708.07747."""

import gzip
from pathlib import Path

import numpy as np

from airserve.learn.tasks import Data, Split, TaskError, divide, folders, nearest_mean
from airserve.model import Array

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
USUAL = "/usr/share/datasets/fashion-mnist"
VALIDATION = 5_000  # of the 60,000 that the authors give for training; their test split stays whole
FILES = {
    "inputs": "train-images-idx3-ubyte.gz",
    "labels": "train-labels-idx1-ubyte.gz",
    "test inputs": "t10k-images-idx3-ubyte.gz",
    "test labels": "t10k-labels-idx1-ubyte.gz",
}

baseline = nearest_mean


def load() -> Data:
    """55,000 rows to train on, 5,000 to validate, 10,000 to test. Raises `TaskError` when the files are absent."""
    tried = folders("fashion-mnist", USUAL)
    folder = next((path for path in tried if all((path / file).is_file() for file in FILES.values())), None)
    if folder is None:
        raise TaskError(
            f"Fashion-MNIST is not in {' or '.join(map(str, tried))}: install the Debian package "
            "dataset-fashion-mnist, or put its four .gz files in AIRSERVE_DATA/fashion-mnist."
        )
    read = {part: read_idx(folder / file) for part, file in FILES.items()}
    validation, train = divide(read["inputs"], read["labels"].astype(np.int64), (VALIDATION,))
    test = Split(read["test inputs"], read["test labels"].astype(np.int64))
    return Data("fashion", tuple(CLASSES), train, validation, test)


def read_idx(path: Path) -> Array:
    """The array of an IDX file (LeCun's format: two zero bytes, type 8 for uint8, rank, axes as big-endian int32)."""
    try:
        raw = gzip.decompress(path.read_bytes())
        zero, kind, rank = int.from_bytes(raw[:2], "big"), raw[2], raw[3]
        shape = tuple(np.frombuffer(raw, ">i4", rank, offset=4).tolist())
        if zero or kind != 8:
            raise ValueError("not an IDX file of uint8")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise TaskError(f"{path} cannot be read: {error}; install the package again.") from None
