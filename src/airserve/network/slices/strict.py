"""Hard slicing: every slice has its minimum and lends nothing (the isolation that GSMA NG.116 calls physical)."""

import numba
import numpy as np

from airserve.model import Array


@numba.njit
def allocate(need: Array, dedicated: Array, minimum: Array, maximum: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for needs and shares in blocks of the same shape.

    >>> share = np.array([10, 0]), np.array([20, 30]), np.array([60, 100])
    >>> allocate(np.array([100, 10]), *share, 100)
    array([20, 10])
    """
    grant = np.zeros_like(need)
    for k in range(need.size):
        grant[k] = min(need[k], minimum[k])
    return grant
