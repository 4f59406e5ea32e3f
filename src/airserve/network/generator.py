"""Random numbers of the MAC: a generator whose state is one number of `State.n`."""

from __future__ import annotations

import numpy as np

from airserve.network.buffers import N, State
from airserve.network.jit import inner


@inner
def uniform(s: State) -> float:
    """The next number of [0, 1): xorshift64*, Vigna 2016, arXiv:1402.6246."""
    x = np.uint64(s.n[N.random])
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    s.n[N.random] = np.int64(x)
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) * (1.0 / 9007199254740992.0)
