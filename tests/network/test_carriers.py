"""Several carriers of a cell: together the sum of their peak rates, and none disturbs another."""

import numpy as np
import pytest
from pydantic import ValidationError

from airserve.network import association, radio, twin
from airserve.network.budget import budget
from airserve.network.topology import Cell, Network
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


def test_one_station_has_the_radio_of_one_carrier():
    net, one = hall(carriers=2), hall()
    trace = radio.load(net.cell)
    there = association.stood(net, trace, 20, np.random.default_rng(1), [0, 1] * 10)
    rows, steps = radio.assign(trace, 20, np.random.default_rng(1))
    assert (there.serving == [0, 1] * 10).all()
    assert (there.row == rows).all()
    assert (there.step == steps).all()
    assert there.shift_db(np.arange(20), there.serving) == pytest.approx(0)
    over, _ = association.over_noise(one.cell, trace, there.loss_db)
    assert (over[np.arange(20), 1 - there.serving] == 0).all()


def test_neighbours_disturb_carrier_by_carrier():
    net = hall(carriers=2, trps=3)
    there = association.stood(net, radio.load(net.cell), 30, np.random.default_rng(1), [0, 1] * 15)
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
