"""Several carriers of a cell: together the sum of their peak rates, and none disturbs another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airserve.network import association, radio, twin
from airserve.network.budget import budget
from airserve.network.carriers import kinds, side_by_side
from airserve.network.cell import Cell
from airserve.network.topology import Network
from airserve.network.traffic import Flow, TrafficError, carriers


def hall(**cell):
    return Network.model_validate(
        {
            "cells": [{"name": "hall", "reference_signals": False, **cell}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge"}],
        }
    )


def fetch(name="fetch", **other):
    given = {"devices": 3, "rate_hz": 1.0, "site": "mast", "bytes_up": [1], "bytes_down": [1000], **other}
    return Flow(name, "all", **given)


@pytest.fixture
def clear():
    """A trace of 60 dB on one layer in both directions."""
    made_by = {"gnb_power_dbm": 24.0, "ue_noise_figure_db": 9.0, "gnb_noise_figure_db": 5.0}
    snr, places = np.full((4, 1, 1), 60, np.float32), np.zeros((1, 3), np.float32)
    return radio.Trace(
        "inf-dh", 0.01, snr, snr, np.zeros((4, 3), np.float32), made_by, np.full((4, 1, 1), 80, np.uint8), places
    )


def test_together_they_have_the_sum_of_the_peak_rates(clear):
    """TS 38.306 4.1.2 adds up over carriers; one device, on one of them, has that of one."""
    one = budget(Cell(name="hall", reference_signals=False), "down", layers=1)
    formula_mbps = 1e-6 * 8 * 948 / 1024 * 273 * 12 * 28e3 * (1 - 0.14)
    assert one.formula_mbps == pytest.approx(formula_mbps)
    flood = fetch(bytes_down=[1_000_000], arrival="poisson", rate_hz=100.0)
    net = hall(carriers=3)
    seen = twin.run(net, [flood], until_s=1, seed=1, trace=clear, warm_s=1, drain_s=0.1)
    assert seen.many.names == ("hall-a", "hall-b", "hall-c")
    shares = [row["down"]["share_used"] for row in seen.many.rows()]
    assert shares == pytest.approx([1, 1, 1], abs=0.01)
    assert sorted(seen.many.serving.tolist()) == [0, 1, 2]
    assert seen.many.device_sinr_db[:, 0] == pytest.approx(60)  # no interference at full load of the others
    assert seen.slices[0]["down"]["mbps"] == pytest.approx(3 * one.goodput_mbps, rel=0.01)


def stood(net, trace, on):
    of = kinds(net)
    return side_by_side([association.stood(net, trace, len(on), np.random.default_rng(1))], of, np.array(on))


def test_one_station_has_the_radio_of_one_carrier():
    net, one = hall(carriers=2), hall()
    trace = radio.load(net.cell)
    there = stood(net, trace, [0, 1] * 10)
    rows, steps = radio.assign(trace, 20, np.random.default_rng(1))
    assert (there.serving == [0, 1] * 10).all()
    assert (there.row == rows).all()
    assert (there.step == steps).all()
    assert there.shift_db(np.arange(20), there.serving) == pytest.approx(0)
    over, _ = association.over_noise(one.cell, trace, there.loss_db)
    assert (over[np.arange(20), 1 - there.serving] == 0).all()


def test_neighbours_disturb_carrier_by_carrier():
    net = hall(carriers=2, trps=3)
    there = stood(net, radio.load(net.cell), [0, 1] * 15)
    assert there.loss_db.shape == (30, 6)
    heard = np.isfinite(there.loss_db)
    assert not heard[::2, 1::2].any()
    assert not heard[1::2, ::2].any()
    single = association.stood(hall(trps=3), radio.load(net.cell), 30, np.random.default_rng(1))
    assert (there.loss_db[::2, ::2] == single.loss_db[::2]).all()


def test_devices_are_dealt_by_load_or_by_name():
    net = hall(carriers=3)
    flows = [fetch("light", devices=6), fetch("heavy", devices=2, bytes_down=[9000]), fetch("here", carrier=3)]
    dealt = np.array(carriers(net, flows))
    assert dealt[8:].tolist() == [2, 2, 2]
    load = np.bincount(dealt, [1001] * 6 + [9001] * 2 + [1001] * 3)
    assert load.max() - load.min() <= 9001
    assert carriers(hall(), flows[:2]) == [0] * 8
    with pytest.raises(TrafficError, match="carriers 1 to 2"):
        twin.run(hall(carriers=2), [fetch(carrier=3)], until_s=1, seed=1)
    with pytest.raises(ValidationError, match="leave one of the two out"):
        hall(carriers=2, trps=2, speed_kmh=3)


def test_more_carriers_answer_sooner():
    flood = [fetch(devices=12, rate_hz=30.0, arrival="poisson", bytes_down=[500_000])]
    slow, fast = (twin.run(hall(carriers=k), flood, until_s=2, seed=1).readings["fetch"] for k in (1, 3))
    assert np.median(fast.latency_ms) < 0.8 * np.median(slow.latency_ms)


WIDE, PAIRED = {"bandwidth_mhz": 40}, {"duplex": "fdd", "scs_khz": 15, "bandwidth_mhz": 20}
UNLIKE = [WIDE, PAIRED, WIDE]


def test_carriers_that_differ_have_the_sum_of_their_rates(clear):
    """TS 38.306 4.1.2, summed over carriers of other bandwidth, spacing and duplex, less each one's overheads."""
    asks = {"devices": 1, "bytes_down": [20_000], "arrival": "poisson", "rate_hz": 1500.0}
    flood = [fetch(f"f{k}", carrier=k, **asks) for k in (1, 2, 3)]
    net = hall(carriers=UNLIKE)
    seen = twin.run(net, flood, until_s=1, seed=1, trace=[clear, clear], warm_s=1, drain_s=0.1)
    rates = [row["down"]["mbps"] for row in seen.many.rows()]
    assert rates == pytest.approx([budget(cell, "down", layers=1).goodput_mbps for cell in net.carriers], rel=0.01)
    assert [row["down"]["share_used"] for row in seen.many.rows()] == pytest.approx([1, 1, 1], abs=0.01)


@pytest.mark.parametrize("other", [PAIRED, {"scs_khz": 60, "bandwidth_mhz": 50}])
def test_a_carrier_beside_another_kind_is_as_beside_its_own(clear, other):
    """Kinds take turns in time: each request takes to the nanosecond what it takes where both carriers are alike."""
    asks = {"devices": 2, "rate_hz": 40.0, "bytes_up": [3000], "bytes_down": [20_000], "arrival": "poisson"}
    flows = [fetch(f"f{k}", carrier=k, **asks) for k in (1, 2)]
    mixed = twin.run(hall(carriers=[WIDE, other], grant="configured"), flows, until_s=2, seed=1, trace=[clear, clear])
    for k, own in enumerate((WIDE, other), 1):
        alike = twin.run(hall(carriers=[own, own], grant="configured"), flows, until_s=2, seed=1, trace=clear)
        found, expected = (seen.readings[f"f{k}"] for seen in (mixed, alike))
        assert found.answered == expected.answered > 100
        np.testing.assert_allclose(found.latency_ms, expected.latency_ms, atol=1e-6)


OTHERS = [WIDE, PAIRED, {"tdd": "DSU"}, {"scs_khz": 60, "bandwidth_mhz": 50}]


@given(st.integers(0, 1000), st.lists(st.sampled_from(OTHERS), min_size=2, max_size=4))
@settings(max_examples=6, deadline=None)
def test_every_request_is_answered_on_whichever_carriers(seed, given):
    """Whatever differs: nothing is lost, a site takes up first what came first, and the same seed gives the same."""
    flows = [fetch(devices=8, rate_hz=8.0, bytes_up=[2000], bytes_down=[9000], arrival="poisson", site_seconds=[8e-3])]
    net = hall(carriers=given)
    seen, again = (twin.run(net, flows, until_s=1, seed=seed, drain_s=30).readings["fetch"] for _ in range(2))
    assert seen.answered == len(seen.sent_s)
    assert (seen.ms >= -1e-9).all()
    at_ms = 1e3 * seen.sent_s[:, None] + np.cumsum(seen.ms, axis=1)
    arrived = [one.kind for one in seen.spans].index("transit")
    came, began = np.round(at_ms[:, arrived], 6), at_ms[:, arrived + 1]
    assert (np.diff(began[np.lexsort((began, came))]) >= -1e-6).all()
    np.testing.assert_array_equal(again.ms, seen.ms)


def test_devices_are_dealt_by_what_a_carrier_holds():
    dealt = np.bincount(carriers(hall(carriers=[{}, WIDE]), [fetch(devices=38)]))
    assert dealt.tolist() == pytest.approx([38 * 273 / 379, 38 * 106 / 379], abs=1)


def test_carriers_that_cannot_be_are_refused(clear):
    with pytest.raises(ValidationError, match="carrier 2 of cell hall: bandwidth_mhz 37 does not exist at 30 kHz"):
        hall(carriers=[{}, {"bandwidth_mhz": 37}])
    with pytest.raises(radio.TraceError, match="carriers of 2 kinds and 1 traces"):
        twin.run(hall(carriers=[{}, WIDE]), [fetch()], until_s=1, seed=1, trace=clear)
    with pytest.raises(radio.TraceError, match=r"--carrier-ghz 2\.1"):
        twin.run(hall(carriers=[{}, {"carrier_ghz": 2.1}]), [fetch()], until_s=1, seed=1)
