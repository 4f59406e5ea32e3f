"""The exam of the slice policies: every file of network/slices/ sits it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import catalog
from airserve.network.slicing import NAMES, _chain

BLOCKS = 273


@st.composite
def cases(draw):
    """need, dedicated, minimum, maximum and blocks as TS 28.541 allows them."""
    slices = draw(st.integers(1, 6))
    blocks = draw(st.integers(0, BLOCKS))
    minimum, left = [], blocks
    for _ in range(slices):
        minimum.append(draw(st.integers(0, left)))
        left -= minimum[-1]
    dedicated = [draw(st.integers(0, one)) for one in minimum]
    maximum = [draw(st.integers(one, blocks)) for one in minimum]
    need = [draw(st.integers(0, 3 * BLOCKS)) for _ in range(slices)]
    return (*(np.array(x, np.int64) for x in (need, dedicated, minimum, maximum)), blocks)


@pytest.mark.parametrize("name", catalog.slices)
@settings(deadline=None)  # the first call compiles
@given(case=cases())
def test_policy_gives_what_it_may(name, case):
    need, dedicated, minimum, maximum, blocks = case
    before = [x.copy() for x in case[:4]]
    grant = catalog.slices[name](*case)
    assert grant.dtype == np.int64
    assert grant.shape == need.shape
    assert grant.sum() <= blocks
    assert (grant >= 0).all()
    assert (grant[need == 0] == 0).all()
    assert (grant <= np.minimum(need, maximum)).all()
    assert (grant >= np.minimum(need, minimum)).all(), "the minimum is guaranteed on demand"
    reserved = np.maximum(grant, dedicated)
    assert reserved.sum() <= blocks, "what is dedicated is never lent"
    assert all((a == b).all() for a, b in zip(before, case[:4], strict=True)), "pure"


@settings(deadline=None)  # the first call compiles
@given(case=cases())
def test_ratio_wastes_nothing(case):
    need, dedicated, _, maximum, blocks = case
    grant = catalog.slices["ratio"](*case)
    content = (grant == np.minimum(need, maximum)).all()
    assert content or np.maximum(grant, dedicated).sum() == blocks


@settings(deadline=None)  # the first call compiles
@given(case=cases())
def test_ratio_shares_the_rest_evenly(case):
    """Water-filling, solved by bisection on the level: what is above the minimum is equal or limited by need or max."""
    need, dedicated, minimum, maximum, blocks = case
    grant = catalog.slices["ratio"](*case)
    want = np.minimum(need, maximum)
    base = np.minimum(want, minimum)
    lent = blocks - np.maximum(base, dedicated).sum()
    low, high = 0.0, float(blocks)
    for _ in range(60):
        level = (low + high) / 2
        filled = np.minimum(want - base, level).sum()
        low, high = (level, high) if filled <= lent else (low, level)
    assert np.abs(grant - (base + np.minimum(want - base, low))).max() <= 1


def test_the_kernel_finds_every_policy():
    args = (np.array([100, 100]), np.array([10, 0]), np.array([20, 30]), np.array([60, 100]), 100)
    import numba

    chain = _chain()
    ask = numba.njit(lambda policy, a, b, c, d, e: chain(policy, a, b, c, d, e))
    for number, name in enumerate(NAMES):
        assert ask(number, *args).tolist() == catalog.slices[name](*args).tolist()
    assert list(catalog.slices) == NAMES
