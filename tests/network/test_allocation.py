"""What grants can name: TS 38.214 5.1.2.2 written out, and what whole groups cost slices and packets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.network import allocation
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.slicing import sight

TABLE = [(1, 36, 2, 4), (37, 72, 4, 8), (73, 144, 8, 16), (145, 275, 16, 16)]  # PRBs from, to; P 1, P 2


@pytest.mark.parametrize(("first", "last", "one", "two"), TABLE)
def test_group_sizes_are_those_of_the_table(first, last, one, two):
    for prbs in (first, last):
        assert [allocation.group_size(prbs, k) for k in (1, 2)] == [one, two]


@settings(deadline=None)
@given(prbs=st.integers(1, 275), start=st.integers(0, 2199), configuration=st.sampled_from([1, 2]))
def test_groups_are_those_of_the_clause(prbs, start, configuration):
    """5.1.2.2.1: their number, the first and the last; all others have P."""
    p = allocation.group_size(prbs, configuration)
    sizes = allocation.group_sizes(prbs, configuration, start)
    assert len(sizes) == -(-(prbs + start % p) // p)
    assert sizes.sum() == prbs
    if len(sizes) > 1:
        assert sizes[0] == p - start % p
        assert sizes[-1] == ((start + prbs) % p or p)
        assert (sizes[1:-1] == p).all()


@pytest.mark.parametrize("prbs", [1, 2, 11, 24, 51, 106])
def test_indications_are_those_of_the_clause(prbs):
    """5.1.2.2.2: N (L - 1) + RB_start, or from the other end; each names one row, and all are used."""
    seen = set()
    for first in range(prbs):
        for length in range(1, prbs - first + 1):
            riv = allocation.indication(first, length, prbs)
            if length - 1 <= prbs / 2:
                assert riv == prbs * (length - 1) + first
            else:
                assert riv == prbs * (prbs - length + 1) + (prbs - 1 - first)
            assert allocation.row(riv, prbs) == (first, length)
            seen.add(riv)
    assert seen == set(range(prbs * (prbs + 1) // 2))


@pytest.mark.parametrize(("first", "length"), [(0, 0), (0, 274), (272, 2), (-1, 3)])
def test_rows_that_do_not_exist(first, length):
    with pytest.raises(ValueError, match="do not lie in a bandwidth part of 273"):
        allocation.indication(first, length, 273)


@settings(max_examples=20, deadline=None)
@given(given=st.lists(st.integers(0, 120), min_size=1, max_size=4), group=st.sampled_from([2, 8, 16]))
def test_slices_have_in_the_mean_what_they_are_given(given, group):
    """Whole groups in every slot, no more than the carrier has, and over many slots each slice its share."""
    prbs = -(-sum(given) // group) * group
    slices, total = sight([10**6] * len(given)).view(np.recarray), np.zeros(len(given))
    for _ in range(40):
        now = np.array(given)
        allocation.in_groups.py_func(slices, now, group, prbs + 1)
        assert (now % group == 0).all()
        assert now.sum() <= prbs
        total += now
    assert total / 40 == pytest.approx(np.array(given), abs=group * len(given) / 40)


def test_a_small_packet_costs_a_group(network, flat):
    """200 bytes at the top MCS: two PRBs in a row, or one whole group of 16."""
    used = []
    for kind in (1, 0):
        mac = Mac(network(allocation=kind, reference_signals=False), [0], seed=1, trace=flat(60))
        mac.offer(0, DOWN, 200, 0.1)
        assert len(mac.run(0.2)) == 1
        used.append(int(mac.usage().prbs_used[0, DOWN]))
    assert used == [3, 16]


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_grants_are_of_whole_groups(network, flat, direction):
    """A flood in two slices: every grant is of groups of 16, and shares are as in type 1, to 272 of 273 PRBs."""
    slices = [{"name": "a", "max": 30}, {"name": "b"}]
    mac = Mac(network(slices, allocation=0), [0, 0, 1, 1], seed=1, trace=flat(12, 14, 16, 18), grant="configured")
    for ue in range(4):
        for _ in range(300):
            mac.offer(ue, direction, 30_000, 0.0)
    mac.run(0.5)
    prbs = mac._state.block["prbs"]
    assert (prbs % 16 == 0).all()
    assert (prbs > 0).sum() > 2
    # 81 of 273, which is five groups and 1/16; the rest, less one PRB that is no group
    assert mac.usage().share_used[:, direction] == pytest.approx([0.297, 0.7], abs=0.012)
