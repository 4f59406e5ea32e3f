"""RRMPolicyRatio, TS 28.541 4.3.36: dedicated is never lent, min is guaranteed on demand, max is never passed."""

import numpy as np

from airserve.model import Array

PROMISES = {"dedicated", "minimum", "maximum", "lent"}


def allocate(slices: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for slices as `slicing.SLICE`.

    A slice has what it is owed first, as far as it needs it: its minimum, or over a window of several slots what
    brings its mean up to it. What is left, less what others keep dedicated, is filled evenly (max-min fair: TS 28.541
    calls it best effort) up to need and maximum; odd blocks go to the first slices.

    >>> from airserve.network.slicing import sight
    >>> share = {"dedicated": [10, 0], "minimum": [20, 30], "maximum": [60, 100]}
    >>> allocate(sight([100, 100], **share), 100)
    array([45, 55])
    >>> allocate(sight([0, 100], **share), 100)
    array([ 0, 90])
    """
    grant = np.zeros(slices.size, np.int64)
    want = np.zeros(slices.size, np.int64)
    left = blocks - slices["dedicated"].sum()
    for best_effort in (False, True):
        short = 0
        for k in range(slices.size):
            used, window, dedicated = slices["used"][k], slices["window"][k], slices["dedicated"][k]
            share = slices["maximum"][k] if best_effort else slices["minimum"][k]
            owed = int(min(max(window * (share - used), 0), blocks) + 1e-6)
            want[k] = max(grant[k], min(slices["need"][k], owed))
            grant[k] = max(grant[k], min(want[k], dedicated))
            short += want[k] > grant[k]
        while left > 0 and short > 0:
            step, short = max(left // short, 1), 0
            for k in range(slices.size):
                more = min(step, want[k] - grant[k], left)
                grant[k] += more
                left -= more
                short += want[k] > grant[k]
    return grant
