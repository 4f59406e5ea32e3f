"""The user-plane function: rules against brute force, links against a queue's formula, steering while it runs."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airserve.contract import Span
from airserve.network import twin
from airserve.network.buffers import wire_bytes
from airserve.network.core import ANY, RULE, CoreError, compiled, detect, renew
from airserve.network.jit import njit
from airserve.network.topology import Network, Rule
from airserve.network.traffic import Flow

MAST = {"name": "mast", "kind": "edge", "delay_ms": 1, "cores": 64}
REGION = {"name": "region", "kind": "cloud", "delay_ms": 20, "cores": 64, "speed": 0.5}
SITES = (MAST, REGION)


def hall(sites=SITES, rules=(), slices=({"name": "a"}, {"name": "b"})):
    return Network.model_validate({"cells": [{"name": "hall"}], "slices": slices, "sites": sites, "rules": rules})


def ask(name="ask", **other):
    given = {"slice": "a", "devices": 10, "rate_hz": 5.0, "site": "region", "bytes_up": [900], "bytes_down": [200]}
    return Flow(name, **{**given, **other})


def run(network, *flows, flat=None, until_s=10.0, **other):
    return twin.run(network, flows or [ask()], until_s=until_s, seed=1, trace=flat, grant="configured", **other)


def transit(readings, site, direction="up"):
    return readings.ms[:, readings.spans.index(Span("transit", direction, site))]


@njit
def find(rules, flow, device, slice_, destination, at_s):
    return detect(rules, flow, device, slice_, destination, at_s)


maybe = {
    "service": st.sampled_from([None, "one", "two"]),
    "slice": st.sampled_from([None, "a", "b"]),
    "destination": st.sampled_from([None, "mast", "region"]),
    "precedence": st.integers(0, 3),
    "from_s": st.sampled_from([0.0, 2.0]),
    "until_s": st.sampled_from([None, 3.0]),
}


def rules_of(law):
    """Lists of rules, each of which says something."""
    says = st.fixed_dictionaries(law).filter(lambda one: any(one.get(key) for key in SAYS))
    return st.lists(says.map(Rule.model_validate), max_size=4)


SAYS = ("service", "slice", "destination", "up_mbps")


@settings(deadline=None)
@given(
    rules_of(maybe),
    st.sampled_from(["one", "two"]), st.sampled_from(["a", "b"]), st.sampled_from(["mast", "region"]),
    st.sampled_from([1.0, 2.5, 4.0]),
)  # fmt: skip
def test_the_lowest_precedence_that_matches_holds(rules, service, slice_, destination, now_s):
    network = hall()
    found = find(
        compiled(network, rules, ["one", "two"], 0.0),
        ["one", "two"].index(service), 0, network.slice_index(slice_), ["mast", "region"].index(destination), now_s,
    )  # fmt: skip
    ranked = sorted(rules, key=lambda rule: rule.precedence)
    matching = [
        rule
        for rule in ranked
        if rule.service in (None, service) and rule.slice in (None, slice_)
        and rule.destination in (None, destination) and rule.from_s <= now_s < (rule.until_s or 99)
    ]  # fmt: skip
    assert found == (ranked.index(matching[0]) if matching else ANY)


def test_a_flow_is_steered_at_a_time():
    """From 5 s on the mast answers what asks for the region: its transit, its speed; only that service."""
    rules = [{"service": "moved", "forward": "mast", "from_s": 5}]
    flows = [ask("moved", site_seconds=[0.02]), ask("stays", slice="b")]
    outcome = run(hall(rules=rules), *flows)
    moved, stays = outcome.readings["moved"], outcome.readings["stays"]
    late = moved.sent_s > 5
    assert transit(moved, "mast")[late] == pytest.approx(1.0)
    assert (transit(moved, "region")[late] == 0).all()
    assert (transit(moved, "mast")[moved.sent_s < 4.9] == 0).all()
    compute = moved.ms[:, moved.spans.index(Span("compute", "", "mast"))]
    assert compute[late] == pytest.approx(10.0)  # 20 ms at half the speed
    assert transit(stays, "region") == pytest.approx(20.0)
    assert np.median(moved.latency_ms[late]) == pytest.approx(np.median(moved.latency_ms[~late]) - 48, abs=1)
    for readings in (moved, stays):
        assert readings.answered == len(readings.sent_s)


def test_a_controller_steers_by_what_it_sees():
    """It moves the flow once its median passes 40 ms, and is told the truth about it."""
    seen = []

    def control(view):
        seen.append(view)
        slow = view.now_s >= 2 and np.median(view.latency_ms["ask"]) > 40
        return [Rule(service="ask", forward="mast")] if slow else None

    outcome = run(hall(), control=control, control_s=2.0)
    one = outcome.readings["ask"]
    assert [view.now_s for view in seen] == [0, 2, 4, 6, 8]
    assert np.median(one.latency_ms[one.sent_s < 1.9]) > 40 > np.median(one.latency_ms[one.sent_s > 2.1])
    told = np.concatenate([view.latency_ms["ask"] for view in seen[2:]])
    assert np.isin(np.round(told, 6), np.round(one.latency_ms, 6)).mean() > 0.95  # but for some of the warm-up
    assert 0 < seen[2].share_used["a"][1] < 0.2


def test_a_message_crosses_a_link_at_its_rate():
    site = {**MAST, "rate_mbps": 10}
    one = run(hall((site,)), ask(devices=1, site="mast", bytes_up=[20_000]), until_s=20).readings["ask"]
    assert transit(one, "mast") == pytest.approx(1 + 8e-4 * wire_bytes(20_000))
    assert transit(one, "mast", "down") == pytest.approx(1 + 8e-4 * wire_bytes(200))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_queue_of_a_link_is_that_of_m_d_1(flat, load):
    """Down, where messages leave the site as they came: Poisson, equal in size."""
    bits = 8 * wire_bytes(1000)
    site = {**MAST, "rate_mbps": load and 100 * 10 * bits / load / 1e6}
    flow = ask(site="mast", devices=100, rate_hz=10.0, arrival="poisson", bytes_up=[100], bytes_down=[1000])
    one = run(hall((site,)), flow, flat=flat(60), until_s=40.0).readings["ask"]
    service_ms = load / (100 * 10) * 1e3
    came = one.sent_s + 1e-3 * one.ms[:, : one.spans.index(Span("transit", "down", "mast"))].sum(axis=1)
    wait_ms = transit(one, "mast", "down") - 1 - service_ms
    free, expected = 0.0, []
    for at in np.sort(came):  # the radio's slots make batches of what comes: the same queue, event by event
        free = max(free, at) + service_ms / 1e3
        expected.append(free - at - service_ms / 1e3)
    assert wait_ms.mean() == pytest.approx(1e3 * np.mean(expected), rel=0.03)
    m_d_1 = service_ms * load / 2 / (1 - load)
    assert wait_ms.mean() >= 0.9 * m_d_1


def test_a_full_queue_drops_and_a_rate_is_enforced():
    narrow = {**MAST, "rate_mbps": 1, "queue_kb": 5}
    flood = {"site": "mast", "devices": 20, "rate_hz": 20.0}
    lost = run(hall((narrow,)), ask(transport="udp", **flood)).readings["ask"]
    assert 0.2 < lost.answered / len(lost.sent_s) < 0.5  # 0.94 of 400 * 8 * 944 bits fit
    assert np.nanmax(transit(lost, "mast")) < 1 + 40 + 8
    kept = run(hall((narrow,)), ask(**flood), until_s=4.0, drain_s=30.0).readings["ask"]
    assert kept.answered == len(kept.sent_s)  # a TCP connection sends again what a queue drops
    rule = {"slice": "a", "up_mbps": 1.0}
    held = run(hall((MAST,), [rule]), ask(site="mast", devices=20, rate_hz=20.0), until_s=5.0, drain_s=60.0)
    one = held.readings["ask"]
    assert one.answered == len(one.sent_s)
    passed_s = one.sent_s + 1e-3 * (one.ms[:, :3].sum(axis=1))
    seconds = passed_s.max() - passed_s.min()
    assert len(passed_s) * 8 * wire_bytes(900) / seconds / 1e6 == pytest.approx(1.0, rel=0.02)


laws = {**maybe, "up_mbps": st.sampled_from([None, 1.0, 2.0])}


@settings(deadline=None)
@given(rules_of(laws), rules_of(laws), st.data())
def test_requests_keep_the_rule_that_they_were_judged_by(before, after, data):
    old, new = (compiled(hall(), rules, ["one", "two"], 0.0) for rules in (before, after))
    old["free_s"] = np.arange(2 * len(old)).reshape(-1, 2) + 1
    judged = data.draw(st.lists(st.integers(ANY, len(old) - 1), max_size=6))
    held, law = np.array(judged, np.int64), [name for name in RULE.names if name not in ("free_s", "until_s")]
    table = renew(old, new.copy(), held)
    assert (table[: len(new)][law] == new[law]).all()
    assert (table[len(new) :]["until_s"] == -np.inf).all()
    for was, now in zip(judged, held, strict=True):
        assert (was == ANY) == (now == ANY)
        assert was == ANY or (table[now][law] == old[was][law] and (table[now]["free_s"] == old[was]["free_s"]).all())
    stay = Counter(str(row[[*law, "until_s"]]) for row in old) & Counter(str(row[[*law, "until_s"]]) for row in new)
    assert Counter(str(row[[*law, "until_s"]]) for row in table[: len(new)] if row["free_s"].all()) == stay


def test_a_controller_s_rules_hold_across_its_changes():
    """Told again they forget nothing; taken back they let go of what comes, and keep what is under way."""
    rule, flow = Rule(slice="a", up_mbps=0.5), ask(site="mast", devices=20, rate_hz=5.0)
    often = run(hall((MAST,)), flow, until_s=4.0, drain_s=60.0, control=lambda view: [rule], control_s=0.5)
    once = run(hall((MAST,)), flow, until_s=4.0, drain_s=60.0, control=lambda view: [rule] if not view.now_s else None)
    for readings in (often.readings["ask"], once.readings["ask"]):
        assert readings.answered == len(readings.sent_s)
        assert transit(readings, "mast").max() > 1000
    assert np.array_equal(often.readings["ask"].ms, once.readings["ask"].ms)

    def control(view):
        return [rule, Rule(slice="b", down_mbps=1.0)] if view.now_s < 2 else []

    freed = run(hall((MAST,)), flow, until_s=4.0, drain_s=60.0, control=control).readings["ask"]
    late = freed.sent_s > 2.1
    assert transit(freed, "mast")[late] == pytest.approx(1.0)
    assert transit(freed, "mast")[~late].max() > 500
    assert freed.answered == len(freed.sent_s)


def test_what_a_rate_holds_leaves_the_link_to_others():
    site, rule = {**MAST, "rate_mbps": 20}, {"service": "held", "up_mbps": 0.3, "down_mbps": 0.1}
    flows = [ask("held", site="mast"), ask("free", site="mast", slice="b", transport="udp")]
    outcome = run(hall((site,), [rule]), *flows, until_s=5.0, drain_s=30.0)
    held, free = outcome.readings["held"], outcome.readings["free"]
    assert transit(held, "mast").max() > 500
    assert held.answered == len(held.sent_s)
    for direction, nbytes in (("up", 900), ("down", 200)):
        message_ms = 8e3 * wire_bytes(nbytes) / 20e6
        assert transit(free, "mast", direction).min() == pytest.approx(1 + message_ms)
        assert transit(free, "mast", direction).max() < 1 + 20 * message_ms  # at most all devices' at once


@pytest.mark.parametrize("transport", ["udp", "stream", "tcp-warm", "tcp-cold", "tls"])
def test_what_comes_after_a_drop_is_answered(transport):
    rule = {"service": "ask", "forward": "drop", "until_s": 2}
    flow = ask(transport=transport, bytes_up=[6000])
    one = run(hall(rules=[rule]), flow, until_s=4.0, drain_s=20.0).readings["ask"]
    answered, late = np.isfinite(one.latency_ms), one.sent_s > 2.0
    assert not answered[one.sent_s < 1.8].any()
    assert answered[late].all()
    assert np.median(one.latency_ms[one.sent_s > 3.5]) < 200


@pytest.mark.parametrize("wrong", [1e-300, 1e300])
def test_sites_and_rules_that_no_network_has(wrong):
    """Seconds and rates beyond these do not fit in the clock of a run."""
    bounds = "(greater|less) than or equal to"
    for key in ("speed", "rate_mbps"):
        with pytest.raises(ValidationError, match=f"{key}\n.*{bounds}"):
            hall(({**REGION, key: wrong},))
    for key in ("up_mbps", "down_mbps"):
        with pytest.raises(ValidationError, match=f"{key}\n.*{bounds}"):
            hall(rules=[{key: wrong}])


@settings(deadline=None, max_examples=10)
@given(speed=st.floats(1e-6, 1), rate_mbps=st.floats(1e-3, 1e6))
def test_a_message_takes_as_long_as_its_link_and_site_need(speed, rate_mbps):
    """Whatever these are: the time is worked out, or is after the end of the run."""
    site = {**MAST, "speed": speed, "rate_mbps": rate_mbps}
    flow = ask(devices=1, rate_hz=1.0, site="mast", bytes_up=[1000], site_seconds=[0.01], transport="udp")
    one = run(hall((site,)), flow, until_s=2.0).readings["ask"]
    link_ms = 8e-3 * wire_bytes(1000) / rate_mbps
    answered = np.isfinite(one.latency_ms)
    assert (transit(one, "mast")[answered] >= 1 + link_ms - 1e-6).all()
    assert (one.latency_ms[answered] >= 1 + link_ms).all()
    assert answered.all() or link_ms > 500


def test_a_rule_may_drop():
    outcome = run(hall(rules=[{"slice": "a", "forward": "drop"}]), ask(), ask("other", slice="b"))
    assert outcome.readings["ask"].answered == 0
    assert outcome.lost >= len(outcome.readings["ask"].sent_s)  # those of the warm-up too
    assert outcome.readings["other"].answered == len(outcome.readings["other"].sent_s)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"forward": "moon"}, "forward 'moon'; there is mast, region"),
        ({"slice": "c"}, "slice 'c'; there is a, b"),
        ({"device": 1}, "add `service`"),
        ({"forward": "mast", "from_s": 20, "until_s": 5}, "from_s 20 until_s 5, which is never"),
        ({"forward": "mast", "from_s": 5, "until_s": 5}, "which is never"),
        ({"forward": "mast", "until_s": -1}, "which is never"),
        ({"forward": "mast", "from_s": -1}, "greater than or equal to 0"),
        ({}, "a rule says nothing; give what it detects"),
        ({"precedence": 1, "from_s": 3, "slice": None}, "a rule says nothing"),
    ],
)
def test_rules_that_cannot_be(rule, says):
    with pytest.raises(ValidationError, match=says):
        hall(rules=[rule])
    with pytest.raises(CoreError, match="service 'who'"):
        run(hall(), control=lambda _: [Rule(service="who")])
