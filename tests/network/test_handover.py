"""Devices that walk from cell to cell: the ground they walk on, event A3 by hand, and no byte lost or doubled."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airserve.network import association, cluster, handover, mobility, path_loss, radio, twin
from airserve.network.buffers import NONE, N
from airserve.network.handover import FAILED, MADE, PING_PONG, Rules
from airserve.network.jit import njit
from airserve.network.mac import DOWN
from airserve.network.topology import Network
from airserve.network.traffic import Flow

RULES = Rules(
    period=80, trigger=320, offset_db=3.0, hysteresis_db=1.0, interruption=100, reestablish=400, stay=2000,
    alpha=1.0, at_0_db=0.0,
)  # fmt: skip


def walking(cells=4, scenario="inf-sl", speed_kmh=30.0, **cell):
    given = {"name": "hall", "scenario": scenario, "trps": cells, "speed_kmh": speed_kmh, **cell}
    sites = [{"name": "mast", "kind": "edge"}]
    return Network.model_validate({"cells": [given], "slices": [{"name": "all"}], "sites": sites})


def ask(devices=20, rate_hz=10.0, up=3000, down=3000):
    return Flow("ask", "all", devices, rate_hz, "poisson", site="mast", bytes_up=[up], bytes_down=[down])


@njit
def better(r, loss_db, own, since, slot):
    return handover.better(r, loss_db, own, since, slot)


def test_a_crossing_by_hand():
    """Measured every 40 ms, a neighbour 1 dB stronger each time from -6 dB on; offset 3, hysteresis 1, 160 ms.

    The first gain above 4 dB is 5, at the 11th measurement, slot 880; four more to the time to trigger: slot 1200.
    """
    since, found = np.full(3, NONE), []
    for i in range(20):
        loss_db = np.array([100.0, 106.0 - i, 130.0])
        found.append(better(RULES, loss_db, 0, since, 80 * i))
    assert found.index(1) * 80 == 1200
    assert found[:15] == [NONE] * 15
    assert since.tolist() == [NONE, 880, NONE]


@pytest.mark.parametrize(("dip_db", "held"), [(2.5, True), (2.0, True), (1.9, False)])
def test_hysteresis_keeps_the_event_alive(dip_db, held):
    """Begun above 4 dB, it ends below 2 only: a dip in between is forgiven, a deeper one starts the timer anew."""
    since = np.full(2, NONE)
    for slot, gain_db in ((0, 5.0), (80, 5.0), (160, dip_db), (240, 5.0)):
        assert better(RULES, np.array([100.0, 100.0 - gain_db]), 0, since, slot) == NONE
    assert (better(RULES, np.array([100.0, 95.0]), 0, since, 320) == 1) == held


def test_the_strongest_of_those_that_have_waited():
    since = np.full(4, NONE)
    for slot in (0, 320):
        last = better(RULES, np.array([100.0, 90.0, 85.0, 80.0 if slot else 100.0]), 0, since, slot)
    assert last == 2  # 3 is stronger, but has only begun


@lru_cache
def rooms(cells=4, ues=12, **cell):
    return cluster.initial(walking(cells, **cell), [0] * ues, seed=1, records=200)


@njit
def over(t, c, ue, target):
    go_over(t, c, ue, target)


@handover.inner
def go_over(t, c, ue, target):
    s = cluster.cell(t, t.air.cell[ue])
    handover.go_over(s, c, t.air, t.rules, t.devices, ue, target)


@njit
def sinr_of(t, c, ue):
    return sinr(t, c, ue)


@handover.inner
def sinr(t, c, ue):
    s = cluster.cell(t, t.air.cell[ue])
    over_noise = handover.down_over_noise(t.air, t.air.load, ue)
    return handover.snr_db(s, c, ue, 1, s.n[N.slot]) - 10.0 * np.log10(1.0 + over_noise)


def test_failure_and_ping_pong():
    """A command that cannot be heard (below -8 dB) fails and leads to the best cell; back within 1 s is ping-pong."""
    c, t, _ = rooms()
    ue, d, a = 3, t.devices, t.air
    own = int(a.cell[ue])
    other, third = (own + 1) % 4, (own + 2) % 4
    d.loss_db[ue, [own, other]] = d.own_loss_db[ue]  # links as that of the trace: far above -8 dB
    t.n[:, N.slot] = 1000
    over(t, c, ue, other)
    assert (a.cell[ue], d.until[ue]) == (other, 1100)
    assert d.books[own].tolist() == [1, 0, 0]
    t.n[:, N.slot] = 2900
    assert sinr_of(t, c, ue) > 20
    over(t, c, ue, own)
    assert d.books[other].tolist() == [1, 0, 1]
    t.n[:, N.slot] = 6000
    over(t, c, ue, other)
    over(t, c, ue, third)
    t.n[:, N.slot] = 8101
    over(t, c, ue, other)  # after more than 1 s
    assert d.books[:, PING_PONG].sum() == 1
    a.load[:], a.over_noise[ue] = 1, 1e9  # the neighbours drown it
    d.loss_db[ue, third] = d.loss_db[ue].min() - 1
    t.n[:, N.slot] = 12_000
    assert sinr_of(t, c, ue) < handover.QOUT_DB
    over(t, c, ue, own)
    assert d.books[other, FAILED] == d.books[:, FAILED].sum() == 1
    assert (a.cell[ue], d.until[ue]) == (third, 12_000 + 100 + 400)


@settings(deadline=None, max_examples=6)
@given(
    speed=st.sampled_from([20.0, 60.0, 120.0]), trigger=st.sampled_from([0, 40, 320]), seed=st.integers(0, 99),
    rate_hz=st.sampled_from([5.0, 40.0]), offset=st.sampled_from([-3.0, 0.0, 3.0]), grant=st.booleans(),
)  # fmt: skip
def test_no_byte_is_lost_or_doubled(speed, trigger, seed, rate_hz, offset, grant):
    """Devices on the run between cells, under load: every request is answered, and bytes are counted once."""
    net = walking(
        4, speed_kmh=speed, time_to_trigger_ms=trigger, handover_offset_db=offset,
        handover_hysteresis_db=0.0, interruption_ms=20.0, grant="configured" if grant else "sr",
    )  # fmt: skip
    outcome = twin.run(net, [ask(rate_hz=rate_hz)], until_s=2, seed=seed, drain_s=60, warm_s=0)
    one = outcome.readings["ask"]
    assert one.answered == len(one.sent_s)
    assert outcome.many.handovers[:, [MADE, FAILED]].sum() > 0
    assert (one.ms >= -1e-9).all()
    mbytes = (outcome.many.mbps * outcome.many.second_s[:, None, None]).sum(axis=(0, 1)) / 8
    answered = (one.sent_s + one.latency_ms / 1e3 < 2).sum()
    assert mbytes[DOWN] * 1e6 == pytest.approx(3000 * answered, abs=3000)


def test_books_of_a_walk():
    """Bytes delivered are the bytes sent, handovers are counted where they began, and all ends as it is repeated."""
    net = walking(9, "inh", speed_kmh=20.0)
    outcome = twin.run(net, [ask(devices=30)], until_s=6, seed=2, warm_s=0)
    many, one = outcome.many, outcome.readings["ask"]
    assert one.answered == len(one.sent_s)
    rows = outcome.summary()["cells"]
    assert sum(row["handovers"]["made"] for row in rows) == many.handovers[:, MADE].sum() > 10
    assert (many.handovers[:, PING_PONG] <= many.handovers[:, MADE]).all()
    assert sum(row["devices"] for row in rows) == 30
    assert (many.position_m != many.there.position_m).any(axis=1).all()
    again = twin.run(net, [ask(devices=30)], until_s=6, seed=2, warm_s=0, control=lambda view: None)
    assert again.summary() == outcome.summary()
    longer = walking(9, "inh", speed_kmh=20.0, interruption_ms=400.0)
    late = twin.run(longer, [ask(devices=30)], until_s=6, seed=2, warm_s=0).readings["ask"]
    assert np.percentile(late.latency_ms, 99) > np.percentile(one.latency_ms, 99) + 100
    slower = walking(9, "inh", speed_kmh=2.0)
    fewer = twin.run(slower, [ask(devices=30)], until_s=6, seed=2, warm_s=0).many
    assert fewer.handovers[:, MADE].sum() < many.handovers[:, MADE].sum()


def test_shadowing_has_its_deviation_and_its_correlation_in_space():
    """Of distance 10: standard deviation 1, e^(-1/2) at 5 points, e^-1 at 10, e^-2 at 20."""
    fields = [mobility.correlated(300, 300, 10, np.random.default_rng(seed)) for seed in range(8)]
    assert np.mean([field.var() for field in fields]) == pytest.approx(1, abs=0.05)
    for apart in (5, 10, 20):
        seen = np.mean([(field[:, apart:] * field[:, :-apart]).mean() for field in fields])
        assert seen == pytest.approx(np.exp(-apart / 10), abs=0.04)


@pytest.mark.parametrize("scenario", ["umi", "inh"])
def test_the_ground_is_path_loss_with_shadow_and_pattern(scenario):
    """Where sight is sure, the map is the formula and a shadow of the table's deviation, less the element's gain."""
    net = walking(3, scenario)
    there = association.stood(net, radio.load(net.cell), 1, np.random.default_rng(0))
    maps = [mobility.ground(net.cell, there, np.random.default_rng(seed)) for seed in range(30)]
    corner, step = maps[0].corner_m, maps[0].step_m
    mast_m = 10.0 if scenario == "umi" else 3.0
    away = np.array([12.0, 9.0]) if scenario == "umi" else np.array([1.0, 0.0])
    at = there.cell_position_m[0] + away
    i, j = np.rint((at - corner) / step).astype(int)
    away = corner + step * np.array([i, j]) - there.cell_position_m[0]
    flat_m = float(np.hypot(*away))
    assert path_loss.sight_probability(scenario, np.array(flat_m), mast_m) > 0.99
    los_db, _ = path_loss.path_loss_db(scenario, np.array(np.hypot(flat_m, mast_m - 1.5)), mast_m, 3.5)
    for k in range(3 if scenario == "umi" else 1):
        gain_db = 0.0
        if scenario == "umi":
            azimuth = (np.degrees(np.arctan2(away[1], away[0])) - 30 - 120 * k + 180) % 360 - 180
            down = np.degrees(np.arctan2(8.5, flat_m))
            gain_db = 8 - min(min(12 * (azimuth / 65) ** 2, 30) + min(12 * (down / 65) ** 2, 30), 30)
        found = np.array([one.loss_db[k, j, i] for one in maps]) - (los_db - gain_db)
        deviation = path_loss.SHADOW[scenario].los_db
        assert abs(found.mean()) < 3 * deviation / np.sqrt(30)
        assert 0.6 * deviation < found.std() < 1.4 * deviation


def test_a_device_alone_cannot_walk():
    with pytest.raises(ValidationError, match="hall is alone"):
        walking(1)
