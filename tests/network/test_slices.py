"""The exam of the slice policies: every file of network/slices/ sits it, and is asked for what it promises."""

import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airserve import catalog
from airserve.network import slices as package
from airserve.network import slicing
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.slicing import PolicyError, promises, sight

BLOCKS = 273


@st.composite
def cases(draw):
    """Slices and blocks as TS 28.541 allows them."""
    n = draw(st.integers(1, 6))
    blocks = draw(st.integers(0, BLOCKS))
    minimum, left = [], blocks
    for _ in range(n):
        minimum.append(draw(st.integers(0, left)))
        left -= minimum[-1]
    slices = sight(
        [draw(st.integers(0, 3 * BLOCKS)) for _ in range(n)],
        dedicated=[draw(st.integers(0, one)) for one in minimum],
        minimum=minimum,
        maximum=[draw(st.integers(one, blocks)) for one in minimum],
        waited_s=[draw(st.sampled_from([0.0, 0.001, 0.02, 1.0])) for _ in range(n)],
        budget_s=[draw(st.sampled_from([0.009, 0.1, 0.28])) for _ in range(n)],
        priority=[draw(st.integers(1, 90)) for _ in range(n)],
    )
    return slices, blocks


@pytest.mark.parametrize("name", catalog.slices)
@settings(deadline=None)
@given(case=cases())
def test_policy_gives_what_it_may_and_keeps_what_it_promises(name, case):
    slices, blocks = case
    before = slices.copy()
    grant = catalog.slices[name].allocate(slices, blocks)
    need, promised = slices["need"], promises(name)
    assert promised <= {"minimum", "dedicated", "maximum", "lent"}
    assert grant.dtype == np.int64
    assert grant.shape == need.shape
    assert grant.sum() <= blocks
    assert (grant >= 0).all()
    assert (grant <= need).all()
    assert (slices == before).all(), "pure"
    reserved = np.maximum(grant, slices["dedicated"] if "dedicated" in promised else 0)
    assert reserved.sum() <= blocks, "what is dedicated is never lent"
    if "maximum" in promised:
        assert (grant <= slices["maximum"]).all()
    if "minimum" in promised:
        assert (grant >= np.minimum(need, slices["minimum"])).all()
    if "lent" in promised:
        content = (grant == np.minimum(need, slices["maximum"])).all()
        assert content or reserved.sum() == blocks, "nothing idle that somebody could fill"


@pytest.mark.parametrize("name", catalog.slices)
@settings(max_examples=30, deadline=None)  # the first call compiles
@given(case=cases())
def test_compiled_it_is_the_same_function(name, case):
    slices, blocks = case
    plain = catalog.slices[name].allocate(slices, blocks)
    assert slicing.allocate(slicing.address(name), slices, blocks).tolist() == plain.tolist()
    assert not slices["fault"].any()


@pytest.mark.parametrize("name", catalog.slices)
@pytest.mark.parametrize("window", [1, 10])
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_shares_hold_over_a_window_under_flood(name, window, seed):
    """60 windows with one slice flooding and the others coming and going, against what is promised of each."""
    rng = np.random.default_rng(seed)
    policy, promised = catalog.slices[name].allocate, promises(name)
    minimum = np.array([80, 50, 30])
    slices = sight([0, 0, 0], minimum=minimum, dedicated=[20, 0, 0], maximum=[273, 160, 50], window=window)
    turns = 60 * window
    on = np.repeat(rng.random((60, 3)) < 0.5, window, axis=0)
    on[:, 1] = True  # floods
    on[turns // 2 :] = True  # at last all do
    granted = np.zeros((turns, 3))
    for turn in range(turns):
        slices["need"], slices["slot"] = np.where(on[turn], 1000, 0), turn
        slices["used"] *= 1 - 1 / window
        granted[turn] = policy(slices, BLOCKS)
        slices["used"] += granted[turn] / window
    flood = granted[turns - 20 * window :].mean(axis=0)
    if "minimum" in promised:
        assert (flood >= 0.98 * minimum).all()
    if "maximum" in promised and window == 1:
        assert (granted <= slices["maximum"]).all()
    if "maximum" in promised:
        assert (flood <= 1.02 * slices["maximum"]).all()
    if "dedicated" in promised:
        assert (granted[:, 1:].sum(axis=1) <= BLOCKS - 20).all()
    if "lent" in promised:
        assert flood.sum() >= 0.98 * min(BLOCKS, slices["maximum"].sum())


@settings(deadline=None)
@given(case=cases())
def test_ratio_shares_the_rest_evenly(case):
    """Water-filling, solved by bisection on the level: what is above the minimum is equal or limited by need or max."""
    slices, blocks = case
    grant = catalog.slices["ratio"].allocate(slices, blocks)
    want = np.minimum(slices["need"], slices["maximum"])
    base = np.minimum(want, slices["minimum"])
    lent = blocks - np.maximum(base, slices["dedicated"]).sum()
    low, high = 0.0, float(blocks)
    for _ in range(60):
        level = (low + high) / 2
        filled = np.maximum(np.minimum(want - base, level), np.minimum(want, slices["dedicated"]) - base).sum()
        low, high = (level, high) if filled <= lent else (low, level)
    assert np.abs(grant - (base + np.minimum(want - base, low))).max() <= 1


def test_a_window_lets_a_slice_catch_up():
    """Half of the carrier on average: who had nothing for a while has all, then half again; window 1 knows no past."""
    policy = catalog.slices["ratio"].allocate
    idle = sight([100, 100], minimum=[50, 50], window=20, used=[0, 100])
    assert policy(idle, 100).tolist() == [100, 0]
    assert policy(sight([100, 100], minimum=[50, 50]), 100).tolist() == [50, 50]


@settings(deadline=None)
@given(case=cases())
def test_deadline_serves_in_the_order_of_slack(case):
    """Nobody has less than it wants while a slice with more slack has more than what is dedicated to it."""
    slices, blocks = case
    grant = catalog.slices["deadline"].allocate(slices, blocks)
    slack = slices["budget_s"] - slices["waited_s"]
    want = np.minimum(slices["need"], slices["maximum"])
    for early in np.flatnonzero(grant < want):
        later = (slack > slack[early]) & (grant > slices["dedicated"])
        assert not later.any()


@settings(deadline=None)
@given(case=cases())
def test_proportional_is_proportional(case):
    """Where no maximum binds and less is there than is asked for, to within a block a slice."""
    slices, blocks = case
    slices["maximum"] = 10**6
    grant, need = catalog.slices["proportional"].allocate(slices, blocks), slices["need"]
    if need.sum() > blocks:
        assert np.abs(grant - need * blocks / need.sum()).max() <= len(need)


def backlog(network, flat, policy, slices, devices, direction, seconds=0.4, **cell):
    """Share of the PRBs that each slice has where `devices` of it have all to send, or nothing (0)."""
    slice_of = [k for k, n in enumerate(devices) for _ in range(max(n, 1))]
    mac = Mac(network(slices, slicing=policy, **cell), slice_of, seed=1, trace=flat(20), grant="configured")
    for ue, k in enumerate(slice_of):
        if devices[k]:
            mac.offer(ue, direction, 20_000_000, 0.0)
    mac.run(seconds)
    return mac.usage().share_used[:, direction]


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_in_the_mac_the_policies_differ_as_they_say(network, flat, direction):
    """One slice floods with six devices, one with one: what each policy makes of min 20 and 30, dedicated 10."""
    slices = ({"name": "a", "dedicated": 10, "min": 20}, {"name": "b", "min": 30, "max": 60, "five_qi": 82})
    share = {name: backlog(network, flat, name, slices, (1, 6), direction) for name in catalog.slices}
    assert share["strict"] == pytest.approx([0.2, 0.3], abs=0.02)
    assert share["ratio"] == pytest.approx([0.45, 0.55], abs=0.02)
    assert share["deadline"] == pytest.approx([0.4, 0.6], abs=0.02)  # 9 ms of budget before 280 ms, up to its max
    assert share["proportional"][1] == pytest.approx(0.6, abs=0.02)
    assert share["proportional"].sum() > 0.98
    idle = {name: backlog(network, flat, name, slices, (0, 6), direction)[1] for name in catalog.slices}
    assert idle == pytest.approx({"strict": 0.3, "ratio": 0.6, "deadline": 0.6, "proportional": 0.6}, abs=0.02)


def test_a_window_in_the_mac(network, flat):
    slices = ({"name": "a", "min": 20, "max": 40}, {"name": "b", "min": 30})
    share = backlog(network, flat, "ratio", slices, (2, 2), DOWN, slicing_window_ms=50)
    assert share == pytest.approx([0.4, 0.6], abs=0.02)


@pytest.mark.parametrize("key", ["max", "min", "dedicated"])
@given(mhz=st.sampled_from([5, 10, 20, 100]), narrow=st.booleans(), share=st.floats(0.01, 20))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_share_comes_to_a_prb_or_is_refused_with_what_would(network, key, mhz, narrow, share):
    cell = {"carriers": [{}, {"bandwidth_mhz": mhz}]} if narrow else {"bandwidth_mhz": mhz}
    prbs = {5: 11, 10: 24, 20: 51, 100: 273}[mhz]

    def net(share):
        return network([{"name": "a", key: share}], **cell)

    if share * prbs / 100 >= 1:
        assert net(share).slices[0].min <= share
        return
    with pytest.raises(ValidationError, match=rf"slice a of cell hall: .* % of {prbs} PRBs is less than one") as told:
        net(share)
    least = float(re.search(r"write at least ([\d.]+)", str(told.value)).group(1))
    assert (least - 0.1) * prbs / 100 < 1
    net(least)


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_the_least_share_is_served(network, flat, direction):
    """2 % of 51 PRBs is one: a slice has that one beside another that floods, as its maximum and as its minimum."""
    for key, policy in (("max", "ratio"), ("min", "strict")):
        slices = ({"name": "a", key: 2}, {"name": "b", "min": 90})
        share = backlog(network, flat, policy, slices, (1, 2), direction, bandwidth_mhz=20)
        assert share[0] == pytest.approx(1 / 51, rel=0.05)


POLICY = "import numpy as np\n\ndef allocate(slices, blocks):\n    return {}\n"
LAWLESS = [
    ("slices['need'] * 0 + blocks", "slice policy mine granted 546 PRBs in a slot that has 273"),
    ("slices['need'] * 0 - 1", "slice policy mine granted -[12] PRBs"),
    ("slices['need'] / 2", "returns array.* for two slices; it has to return an array of two whole numbers"),
    ("slices['ned']", "slice policy mine .*mine.py. fails: .*ned"),
    ("np.array(eval('[1, 1]'))", "cannot be compiled; keep to what numba knows"),
    ("slices['minimum'] * 1", None),
]


@pytest.mark.parametrize(("body", "says"), LAWLESS)
def test_to_add_a_policy_is_to_add_a_file(network, flat, tmp_path, body, says):
    """Plain Python, no decorator; what breaks the law is named in one sentence."""
    (tmp_path / "mine.py").write_text(POLICY.format(body))
    package.__path__.append(str(tmp_path))
    slicing._compiled.cache_clear()
    try:
        slices = ({"name": "a", "min": 20}, {"name": "b", "min": 30})
        if says is None:
            assert backlog(network, flat, "mine", slices, (1, 1), DOWN) == pytest.approx([0.2, 0.3], abs=0.02)
        else:
            with pytest.raises(PolicyError, match=says) as told:
                backlog(network, flat, "mine", slices, (1, 1), DOWN)
            assert "\n" not in str(told.value)
    finally:
        package.__path__.remove(str(tmp_path))
        slicing._compiled.cache_clear()
        sys.modules.pop("airserve.network.slices.mine", None)
