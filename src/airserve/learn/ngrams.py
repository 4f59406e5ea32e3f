"""Interpolated n-grams, the language models that nets must beat. Kneser and Ney 1995, ICASSP."""

import numpy as np

from airserve.model import Array

ORDER = 5


def kneser_ney(train: Array, asked: Array, symbols: int, order: int = ORDER) -> Array:
    """Nats to say each symbol of `asked` after the ones before it, by the counts of `train`; ids below `symbols`.

    p(w | h) = max(c(hw) - d, 0) / c(h) + d kinds(h) / c(h) p(w | shorter h), down to 1 / symbols. The longest history
    counts how often, shorter ones behind how many different symbols (Chen and Goodman 1999, equations 24 and 25, with
    one discount a length, d = n1 / (n1 + 2 n2)).

    >>> (np.exp(-kneser_ney(np.array([0, 1] * 50), np.array([0, 1, 0, 1]), 2)) > 0.9).tolist()[2:]
    [True, True]
    """
    bits = int(symbols - 1).bit_length()
    if bits * order > 63:
        raise ValueError(f"{order} symbols of {bits} bits do not fit in 63 bits")
    start = np.zeros(order - 1, np.int64)
    known, wanted = np.concatenate([start, train]).astype(np.int64), np.concatenate([start, asked]).astype(np.int64)
    grams, counts = np.unique(windows(known, order, order, bits), return_counts=True)
    levels = [(grams, counts)]
    for length in range(order - 1, 0, -1):
        grams, counts = np.unique(grams & ((1 << bits * length) - 1), return_counts=True)
        levels.append((grams, counts))
    p = np.full(len(asked), 1 / symbols)
    for length, (grams, counts) in zip(range(1, order + 1), reversed(levels), strict=True):
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.5
        histories, first = np.unique(grams >> bits, return_index=True)
        total, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        keys = windows(wanted, length, order, bits)
        at = np.searchsorted(grams, keys).clip(max=len(grams) - 1)
        seen = np.where(grams[at] == keys, np.maximum(counts[at] - discount, 0), 0)
        of = np.searchsorted(histories, keys >> bits).clip(max=len(histories) - 1)
        p = np.where(histories[of] == keys >> bits, (seen + discount * kinds[of] * p) / total[of], p)
    return -np.log(p)


def windows(ids: Array, length: int, order: int, bits: int) -> Array:
    """The last `length` symbols up to each place from `order` - 1 on, as one number each."""
    keys = np.zeros(len(ids) - order + 1, np.int64)
    for k in range(order - length, order):
        keys = (keys << bits) | ids[k : len(ids) - order + 1 + k]
    return keys
