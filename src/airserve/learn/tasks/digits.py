"""Handwritten digits, 1,797 in grey, 8x8 with values 0 to 16, from scikit-learn. Alpaydin and Kaynak 1998, UCI."""

import numpy as np

from airserve.learn.tasks import Data, TaskError, divide, nearest_mean

baseline = nearest_mean


def load() -> Data:
    """1,257 rows to train on, 180 to validate, 360 to test. Raises `TaskError` when scikit-learn is absent."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise TaskError("the digits come with scikit-learn: `pip install scikit-learn`.") from None
    found = load_digits()
    inputs, labels = found.images.astype(np.uint8), found.target.astype(np.int64)
    validation, test, train = divide(inputs, labels, (180, 360))
    return Data("digits", tuple("0123456789"), train, validation, test, passes=10)
