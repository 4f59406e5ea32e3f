"""RRMPolicyRatio, TS 28.541 4.3.36: dedicated is never lent, min is guaranteed on demand, max is never passed."""

import numba
import numpy as np

from airserve.model import Array


@numba.njit
def allocate(need: Array, dedicated: Array, minimum: Array, maximum: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for needs and shares in blocks of the same shape.

    A slice has its minimum first, as far as it needs it. What is left, less what others keep dedicated, is filled
    evenly (max-min fair: TS 28.541 calls it best effort) up to need and maximum; odd blocks go to the first slices.

    >>> share = np.array([10, 0]), np.array([20, 30]), np.array([60, 100])
    >>> allocate(np.array([100, 100]), *share, 100)
    array([45, 55])
    >>> allocate(np.array([0, 100]), *share, 100)
    array([ 0, 90])
    """
    grant = np.zeros_like(need)
    left, short = blocks, 0
    for k in range(need.size):
        grant[k] = min(need[k], minimum[k])
        left -= max(grant[k], dedicated[k])
        short += min(need[k], maximum[k]) > grant[k]
    while left > 0 and short > 0:
        step, short = max(left // short, 1), 0
        for k in range(need.size):
            more = min(step, min(need[k], maximum[k]) - grant[k], left)
            grant[k] += more
            left -= more
            short += min(need[k], maximum[k]) > grant[k]
    return grant
