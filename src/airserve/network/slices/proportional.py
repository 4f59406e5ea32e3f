"""No reservation: blocks in proportion to need, as one queue would share them (processor sharing by demand)."""

import numpy as np

from airserve.model import Array

PROMISES = {"maximum", "lent"}


def allocate(slices: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for slices as `slicing.SLICE`; a window changes nothing.

    A slice above its maximum is held to it, and what it may not have is shared in the same proportion among the rest.
    Odd blocks go to the first slices. Dedicated and minimum shares mean nothing here: the policy to compare with.

    >>> from airserve.network.slicing import sight
    >>> allocate(sight([300, 100]), 100), allocate(sight([300, 100], maximum=[60, 100]), 100)
    (array([75, 25]), array([60, 40]))
    """
    grant = np.zeros(slices.size, np.int64)
    left = blocks
    while left > 0:
        total, given = 0, 0
        for k in range(slices.size):
            if grant[k] < min(slices["need"][k], slices["maximum"][k]):
                total += slices["need"][k]
        if total == 0:
            break
        for odd in (False, True):  # where all round down to nothing, one block each
            for k in range(slices.size):
                want = min(slices["need"][k], slices["maximum"][k]) - grant[k]
                if want > 0 and given < left and (given == 0 or not odd):
                    more = 1 if odd else min(left * slices["need"][k] // total, want)
                    grant[k] += more
                    given += more
        left -= given
    return grant
