"""The twin against queueing theory, the MAC that it runs, and its own books."""

import json

import numpy as np
import pytest

from airserve.network import twin
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.traffic import Flow

MAST = {"name": "mast", "kind": "edge", "delay_ms": 1}
SITES = (MAST, {"name": "region", "kind": "cloud", "cores": 8, "delay_ms": 20}, {"name": "cam", "kind": "device"})
KINDS = [
    ("wait", "up", "hall"),
    ("air", "up", "hall"),
    ("transit", "up", "mast"),
    ("queue", "", "mast"),
    ("compute", "", "mast"),
    ("transit", "down", "mast"),
    ("wait", "down", "hall"),
    ("air", "down", "hall"),
]


def span(readings, kind, direction=""):
    return readings.ms[:, [(s.kind, s.direction) for s in readings.spans].index((kind, direction))]


def ask(**other):
    given = {"name": "ask", "slice": "all", "devices": 10, "rate_hz": 5.0, "site": "mast", "bytes_up": [900]}
    return Flow(**{"bytes_down": [200], **given, **other})


@pytest.mark.parametrize("cores", [1, 2])
def test_queue_at_a_site_is_that_of_m_d_c(network, flat, cores):
    """Poisson requests, constant compute. M/D/1: rho s / 2(1 - rho); M/D/2 within the bounds of M/M/2."""
    sites = ({**MAST, "cores": cores},)
    load, compute_s, seconds = 0.5, 0.02, 600
    flow = ask(
        devices=100,
        rate_hz=load * cores / compute_s / 100,
        arrival="poisson",
        site_seconds=[compute_s],
        bytes_up=[100],
    )
    outcome = twin.run(network(sites=sites), [flow], until_s=seconds, seed=1, trace=flat(60), grant="configured")
    wait_ms = span(outcome.readings["ask"], "queue").mean()
    if cores == 1:
        assert wait_ms == pytest.approx(1e3 * load * compute_s / 2 / (1 - load), rel=0.1)
    else:
        m_m_2 = 1e3 * compute_s * load**2 / (1 - load**2)
        assert 0.4 * m_m_2 < wait_ms < 0.7 * m_m_2  # about half of it (Lee and Longton 1959)


def test_spans_add_up(network):
    """Each request's spans are its latency to the last bit that matters, and none is negative."""
    flows = [
        ask(site_seconds=[0.002, 0.004], bytes_up=[900, 15_000]),
        ask(name="cut", site="region", device_site="cam", device_seconds=[0.01, 0.3], arrival="poisson"),
        ask(name="alone", site="", device_site="cam", device_seconds=[0.05]),
    ]
    outcome = twin.run(network(sites=SITES), flows, until_s=20, seed=3)
    one = outcome.readings["ask"]
    assert [(s.kind, s.direction, s.site) for s in one.spans] == KINDS
    assert [s.kind for s in outcome.readings["cut"].spans][:2] == ["queue", "compute"]
    assert [(s.kind, s.site) for s in outcome.readings["alone"].spans] == [("queue", "cam"), ("compute", "cam")]
    for name, readings in outcome.readings.items():
        assert readings.answered == len(readings.sent_s) > 0, name
        assert (readings.ms >= -1e-9).all()
        assert (np.diff(readings.sent_s) >= 0).all()
        assert 0 <= readings.sent_s.min() < readings.sent_s.max() < 20
    assert span(one, "transit", "up") == pytest.approx(1.0)
    assert set(np.round(span(one, "compute"), 6)) == {2.0, 4.0}
    assert span(outcome.readings["cut"], "transit", "down") == pytest.approx(20.0)


def test_one_request_equals_the_mac_by_hand(network, flat):
    """Up, 1 ms, 2 ms of compute, 1 ms, down: the twin's stamps are those of a Mac that is offered the same."""
    net, trace = network(sites=(MAST,)), flat(60)
    flow = ask(devices=1, rate_hz=2.0, site_seconds=[0.002])
    one = twin.run(net, [flow], until_s=10, seed=2, warm_s=0, trace=trace).readings["ask"]
    mac = Mac(net, [0], seed=1, trace=trace)
    for sent_s, latency_ms in zip(one.sent_s, one.latency_ms, strict=True):
        mac.offer(0, UP, 900, sent_s)
        up = mac.run(sent_s + 0.1)
        mac = Mac(net, [0], seed=1, trace=trace)  # a clean channel: no memory but the clock
        mac.run(sent_s)
        mac.offer(0, DOWN, 200, up["delivered_s"][0] + 0.004)
        down = mac.run(sent_s + 0.2)
        assert latency_ms == pytest.approx((down["delivered_s"][0] - sent_s) * 1e3, abs=1e-6)


def test_a_saturated_cell_leaves_requests_unanswered(network):
    flow = ask(devices=40, rate_hz=10.0, bytes_up=[200_000])
    outcome = twin.run(network(sites=(MAST,)), [flow], until_s=4, seed=1)
    one = outcome.readings["ask"]
    assert 0 < one.answered < len(one.sent_s)
    lost = np.isinf(one.latency_ms)
    assert np.isnan(one.ms[lost]).all()
    assert not np.isnan(one.ms[~lost]).any()
    assert outcome.slices[0]["up"]["share_used"] > 0.95
    summary = outcome.summary()
    assert summary["services"][0]["latency_ms"]["max"] is None
    assert json.loads(json.dumps(summary)) == summary


def test_books_of_the_slices(network):
    """Mbit/s is the bytes offered, PRBs of the seconds are those of the run, and idle slices use nothing."""
    net = network([{"name": "all"}, {"name": "idle", "min": 20}], sites=(MAST,))
    outcome = twin.run(net, [ask(arrival="poisson")], until_s=10.5, seed=5)
    one, rows = outcome.readings["ask"], outcome.slices
    assert [row["name"] for row in rows] == ["all", "idle"]
    assert rows[0]["up"]["mbps"] == pytest.approx(len(one.sent_s) * 900 * 8e-6 / 10.5, rel=0.02)
    assert rows[0]["down"]["mbps"] == pytest.approx(len(one.sent_s) * 200 * 8e-6 / 10.5, rel=0.02)
    assert rows[1]["up"] == {"share_used": 0.0, "mbps": 0.0, "per_s": [0.0] * 11}
    seconds = np.array([1.0] * 10 + [0.5])
    mean = (rows[0]["up"]["per_s"] * seconds).sum() / 10.5
    assert mean == pytest.approx(rows[0]["up"]["share_used"], rel=1e-3)


def test_same_seed_same_outcome(network):
    def latency(seed):
        return twin.run(network(sites=(MAST,)), [ask()], until_s=5, seed=seed).readings["ask"].latency_ms

    assert (latency(1) == latency(1)).all()
    assert len(latency(1)) != len(latency(2)) or (latency(1) != latency(2)).any()


def test_summary_has_what_simulate_prints(network):
    summary = twin.run(network(sites=(MAST,)), [ask()], until_s=5, seed=1).summary()
    assert set(summary) == {"services", "slices", "base_stations"}
    service = summary["services"][0]
    assert set(service) == {
        "name",
        "sent",
        "answered",
        "latency_ms",
        "share_of_p99",
        "spans_ms",
        "power",
        "share_of_time",
    }
    assert sum(service["share_of_time"].values()) == pytest.approx(1, abs=1e-3)
    latency = service["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert set(service["spans_ms"][0]) == {"kind", "direction", "site", "p50", "p99"}
    assert summary["slices"] == [{"name": "all", **{way: summary["slices"][0][way] for way in ("up", "down")}}]
    assert set(summary["slices"][0]["up"]) == {"share_used", "mbps"}


def test_the_share_of_p99_that_absence_has(network, flat):
    """One request in 20 s from each device, released after 10: random access is in every one, and is most of it."""
    net = network(sites=(MAST,), always_on=False, inactivity_ms=10_000)
    rare = ask(rate_hz=0.05, devices=20)
    outcome = twin.run(net, [rare], until_s=100, seed=1, trace=flat(60), warm_s=25)
    one, absent_ms = outcome.readings["ask"], outcome.absent_ms["ask"]
    wait_ms = span(one, "wait", "up")
    assert (absent_ms[:, 0] <= wait_ms + 1e-6).all()
    assert np.median(absent_ms[:, 0]) == pytest.approx(9 + 50 + 5, abs=3)
    shares = outcome.summary()["services"][0]["share_of_p99"]
    assert 0.8 < shares["access"] < 1
    assert shares["sleep"] == 0
    ever = twin.run(network(sites=(MAST,)), [rare], until_s=100, seed=1, trace=flat(60), warm_s=25)
    assert ever.summary()["services"][0]["share_of_p99"] == {"access": 0.0, "sleep": 0.0}


def test_no_requests_no_answers(network):
    outcome = twin.run(network(sites=(MAST,)), [ask(rate_hz=1e-6, arrival="poisson")], until_s=1, seed=1)
    assert outcome.readings["ask"].answered == 0
    assert outcome.summary()["services"][0]["latency_ms"]["p99"] is None
