"""Hard slicing: every slice has its minimum and lends nothing (the isolation that GSMA NG.116 calls physical)."""

import numpy as np

from airserve.model import Array

PROMISES = {"dedicated", "minimum", "maximum"}


def allocate(slices: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for slices as `slicing.SLICE`; a window changes nothing.

    >>> from airserve.network.slicing import sight
    >>> allocate(sight([100, 10], minimum=[20, 30]), 100)
    array([20, 10])
    """
    return np.minimum(slices["need"], slices["minimum"])
