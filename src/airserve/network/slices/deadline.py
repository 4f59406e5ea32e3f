"""Earliest deadline first: the slice whose oldest bytes have least of their budget left (Liu and Layland 1973)."""

import numpy as np

from airserve.model import Array

PROMISES = {"dedicated", "maximum", "lent"}


def allocate(slices: Array, blocks: int) -> Array:
    """Whole blocks per slice, shape (slices,), int64, for slices as `slicing.SLICE`; a window changes nothing.

    What is dedicated is kept; all else goes to slices in the order of the time that their oldest bytes have left,
    each up to its need and maximum. A tie goes to the higher 5QI priority, then to the first. The budget is that of
    the slice's 5QI, or the tightest promise of its services. Minima are not honoured: who is early waits.

    >>> from airserve.network.slicing import sight
    >>> allocate(sight([80, 80], waited_s=[0.001, 0.090], budget_s=[0.01, 0.1], dedicated=[0, 5]), 100)
    array([80, 20])
    """
    grant = np.zeros(slices.size, np.int64)
    for k in range(slices.size):
        grant[k] = min(slices["need"][k], slices["maximum"][k], slices["dedicated"][k])
    left = blocks - slices["dedicated"].sum()
    while left > 0:
        first, earliest_s = -1, 0.0
        for k in range(slices.size):
            slack_s = slices["budget_s"][k] - slices["waited_s"][k]
            before = first < 0 or slack_s < earliest_s
            if first >= 0 and slack_s == earliest_s:
                before = slices["priority"][k] < slices["priority"][first]
            if grant[k] < min(slices["need"][k], slices["maximum"][k]) and before:
                first, earliest_s = k, slack_s
        if first < 0:
            break
        more = min(slices["need"][first], slices["maximum"][first]) - grant[first]
        grant[first] += min(more, left)
        left -= min(more, left)
    return grant
