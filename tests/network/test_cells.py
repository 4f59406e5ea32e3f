"""Several cells: who belongs where, what each does to the others, and that the books agree."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airserve.network import association, cluster, interference, radio, twin
from airserve.network.buffers import NONE, N
from airserve.network.jit import njit
from airserve.network.lattice import SITE_DISTANCE_M, Hexagons, cells
from airserve.network.mac import DOWN, UP, Mac, MacError
from airserve.network.radio import Trace, TraceError
from airserve.network.topology import Network
from airserve.network.traffic import Flow

MADE_BY = {"gnb_power_dbm": 24.0, "ue_noise_figure_db": 9.0, "gnb_noise_figure_db": 5.0}
NOISE_DBM = -174 + 10 * np.log10(273 * 12 * 30e3)  # of 100 MHz, before a noise figure


def several(n, scenario="inf-dh", **cell):
    return Network.model_validate(
        {
            "cells": [{"name": "hall", "scenario": scenario, "trps": n, **cell}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge"}],
        }
    )


@pytest.fixture
def beside():
    """A trace of a hall with two neighbours: per position, SNR of the own link and loss to it and to each of them."""

    def make(*rows):
        snr, *losses = np.array(rows, np.float32).T
        loss_db = np.array(losses, np.uint8).T[:, None, :]
        places = np.array([[0, 30, 8], [10, 10, 8], [110, 50, 8]], np.float32)
        position_m = np.zeros((len(rows), 3), np.float32)
        snr_db = snr[:, None, None]
        return Trace("inf-dh", 0.01, snr_db, snr_db, position_m, MADE_BY, loss_db, places)

    return make


def both(bytes_down, bytes_up=(200,), devices=2, **other):
    given = {"rate_hz": 10.0, "arrival": "poisson", "site": "mast", **other}
    return Flow("ask", "all", devices, bytes_up=list(bytes_up), bytes_down=list(bytes_down), **given)


def test_the_layout_looks_the_same_from_every_sector():
    """Against plain geometry: displacement to the nearest image, turned back by the sector's angle."""
    distance_m = SITE_DISTANCE_M["umi"]
    at_m = cells("umi", np.zeros(3), np.zeros(3))[0][:, :2]
    steps = [np.array([np.cos(a), np.sin(a)]) for a in (0, np.pi / 3, 2 * np.pi / 3)]
    first = distance_m * (3 * steps[0] + 2 * steps[1])
    angles = np.arange(6) * np.pi / 3
    turn = np.array([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angles])
    images = np.concatenate([[[0.0, 0.0]], turn @ first])
    for wrapped, n in ((True, 57), (False, 54), (False, 21)):
        layout = Hexagons(n)
        for home in range(n):
            seen = [layout.seen(home, other) for other in range(n)]
            assert seen[home] == 0
            if wrapped:
                assert sorted(seen) == list(range(57))
            for other in range(n):
                away = at_m[other] - at_m[home] + (images if wrapped else images[:1])
                away = away[np.linalg.norm(away, axis=1).argmin()]
                back = turn[(-2 * home) % 6] @ away
                near = np.linalg.norm(at_m[::3] - back, axis=1)
                want = 3 * near.argmin() + (other - home) % 3 if near.min() < 1 else -1
                assert seen[other] == want, (home, other)


@pytest.mark.parametrize(("scenario", "n"), [("umi", 57), ("umi", 21), ("uma", 3), ("inf-dl", 18), ("inh", 5)])
def test_a_device_belongs_to_the_cell_that_it_hears_best(scenario, n):
    network = several(n, scenario)
    trace = radio.load(network.cell)
    there = association.stood(network, trace, 200, np.random.default_rng(1))
    stored = trace.coupling_loss_db.astype(float)
    for ue in range(200):
        heard = {}
        for k, at_m in enumerate(there.cell_position_m):
            if scenario in SITE_DISTANCE_M:
                continue
            column = int(np.abs(trace.cell_position_m[1:, :2] - at_m).sum(axis=1).argmin()) + 1
            losses = stored[there.row[ue], :, column]
            if losses[0] != 255:
                heard[k] = -10 * np.log10(np.mean(10 ** (-losses / 10)))
        if heard:
            assert there.serving[ue] == min(heard, key=heard.get)
            assert there.loss_db[ue, there.serving[ue]] == pytest.approx(min(heard.values()))
    if n == 57:  # every loss that the trace stores is there, in another order
        for ue in range(20):
            losses = stored[there.row[ue]]
            mean = -10 * np.log10(np.mean(10 ** (-losses[:, losses[0] != 255] / 10), axis=0))
            assert np.sort(there.loss_db[ue][np.isfinite(there.loss_db[ue])]) == pytest.approx(np.sort(mean))
    best = there.loss_db[np.arange(200), there.serving]
    assert np.isfinite(best).all()
    assert (best == there.loss_db.min(axis=1)).all()
    assert np.isfinite(there.shift_db(np.arange(200), there.serving)).all()
    assert len(np.unique(there.serving)) > n / 2


def test_two_cells_at_full_load(beside):
    """SINR = S / (I + N) of the stored losses, when both cells send on all PRBs."""
    trace = beside([30, 80, 84, 95], [30, 80, 92, 83])
    net = several(2)
    many = twin.run(net, [both([40_000_000], rate_hz=1)], until_s=3, seed=2, trace=trace, warm_s=4).many
    for ue in range(2):
        own, other = (84, 95) if many.there.row[ue] == 0 else (83, 92)
        snr_db, noise = 30 + 80 - own, NOISE_DBM + 9
        want_db = 10 * np.log10(10 ** (snr_db / 10) / (1 + 10 ** ((24 - other - noise) / 10)))
        assert many.there.serving[ue] == many.there.row[ue]
        assert many.device_sinr_db[ue, DOWN] == pytest.approx(want_db, abs=0.2)
        assert want_db < snr_db - 3
    assert many.share_used[..., DOWN] == pytest.approx(1.0, abs=0.02)


def test_devices_that_share_prbs_disturb_others_as_one_would():
    """Half of the PRBs are heard elsewhere at half the power, 3 dB less, however many devices share them."""
    seen_db = []
    for mimo, share in (("su", 50), ("mu", 50), ("su", 100)):
        tree = several(6, "inf-sl", mimo=mimo).model_dump()
        tree["slices"] = [{"name": "all", "max": share}]
        flow = both([40_000_000], devices=36, rate_hz=1)
        many = twin.run(Network.model_validate(tree), [flow], until_s=2, seed=1, drain_s=0.1, warm_s=2).many
        seen_db.append(many.device_sinr_db[:, DOWN])
    one, shared, whole = seen_db
    assert shared == pytest.approx(one, abs=1, nan_ok=True)  # a device is not heard in the same snapshots
    assert np.nanmedian(shared - one) == pytest.approx(0, abs=0.1)
    assert np.nanmedian(one - whole) == pytest.approx(10 * np.log10(2), abs=0.1)


def test_beside_a_silent_cell_all_is_as_without_it(beside):
    trace = beside([30, 80, 84, 95], [30, 80, 86, 95])
    many = twin.run(several(2), [both([9000])], until_s=5, seed=1, trace=trace).many
    assert many.there.serving.tolist() == [0, 0]
    for ue in range(2):
        own = trace.coupling_loss_db[many.there.row[ue], 0, 1]
        assert many.device_sinr_db[ue, DOWN] == pytest.approx(30 + 80 - own)
        assert many.device_sinr_db[ue, UP] >= 30 + 80 - own  # fewer PRBs have more power each
    assert [row["devices"] for row in many.rows()] == [2, 0]
    assert many.rows()[1]["down"] == {"share_used": 0, "mbps": 0, "sinr_db": {"p5": None, "p50": None, "p95": None}}


@njit
def down(a, load, ue):
    return interference.down_over_noise(a, load, ue)


@njit
def up(s, c, a, k):
    interference.sent(s, c, a, k)


parts = st.lists(st.floats(0, 1), min_size=6, max_size=6)


@settings(deadline=None, max_examples=60)
@given(load=parts, more=st.floats(0, 1), k=st.integers(0, 5), ue=st.integers(0, 39))
def test_more_load_elsewhere_is_never_better(load, more, k, ue):
    _, t, there = SIX
    load = np.array(load)
    raised = load.copy()
    raised[k] = max(load[k], more)
    before, after = down(t.air, load, ue), down(t.air, raised, ue)
    assert 0 <= before <= after
    if k == there.serving[ue]:
        assert before == after
    row = t.air.over_noise[ue].astype(float)
    assert before == pytest.approx(row @ load - row[there.serving[ue]] * load[there.serving[ue]], rel=1e-5, abs=1e-9)


SIX = cluster.initial(several(6, "inh"), [0] * 40, seed=3)


@settings(deadline=None, max_examples=60)
@given(prbs=st.lists(st.integers(1, 273), min_size=1, max_size=5), start=st.integers(0, 35))
def test_uplink_interference_is_the_power_that_is_granted_elsewhere(prbs, start):
    """By hand: 23 dBm or what open-loop control allows, over the grant's PRBs, through the loss to each other cell."""
    c, t, there = SIX
    k, want = int(there.serving[start]), np.zeros(6)
    s = t.whole._replace(n=t.n[k].copy(), block=t.whole.block.copy())
    for i, some in enumerate(prbs):
        ue = start + i
        s.block[i]["flow"], s.block[i]["prbs"] = c.ues + ue, some
        s.block[i]["next"] = i + 1 if i + 1 < len(prbs) else NONE
        spread_dbm = 23 - 10 * np.log10(some)
        allowed_dbm = 23 - 10 * np.log10(273) + s.flow[c.ues + ue]["open_db"]
        noise_dbm = NOISE_DBM - 10 * np.log10(273) + 5
        received_dbm = min(spread_dbm, allowed_dbm) - there.loss_db[ue]
        want += some / 273 * 10 ** ((received_dbm - noise_dbm) / 10)
    s.n[N.air] = 0
    t.air.heard[:] = 0
    up(s, c, t.air, k)
    others = np.arange(6) != k
    assert t.air.heard[others] == pytest.approx(want[others], rel=1e-4)
    assert t.air.heard[k] == 0


@pytest.mark.parametrize("duplex", ["tdd", "fdd"])
def test_books_of_cells(duplex):
    """All requests are answered, cells' books add up to the slices', and the same seed gives the same in any steps."""
    net = several(21, "umi", duplex=duplex)
    flows = [both([20_000], [3000], devices=60)]
    outcome = twin.run(net, flows, until_s=4, seed=5)
    one, many, summary = outcome.readings["ask"], outcome.many, outcome.summary()
    assert one.answered == len(one.sent_s) > 1500
    assert json.loads(json.dumps(summary)) == summary
    assert [row["name"] for row in summary["cells"]] == [f"hall-{k}" for k in range(1, 22)]
    assert sum(row["devices"] for row in summary["cells"]) == 60
    for way, d in (("down", DOWN), ("up", UP)):
        whole = summary["slices"][0][way]
        assert sum(row[way]["mbps"] for row in summary["cells"]) == pytest.approx(whole["mbps"], rel=1e-4)
        assert np.mean([row[way]["share_used"] for row in summary["cells"]]) == pytest.approx(whole["share_used"], 1e-3)
        values, part = many.sinr_cdf(d)
        assert part[-1] == pytest.approx(1)
        assert len(values) == len(part)
        assert (np.diff(part) >= 0).all()
    assert {span.site for span in one.spans if span.kind == "air"} == {"hall"}
    assert outcome.failed_blocks == pytest.approx(0.1, abs=0.06)
    again = twin.run(net, flows, until_s=4, seed=5, control=lambda view: None)
    assert again.summary()["cells"] == summary["cells"]
    assert (again.readings["ask"].latency_ms == one.latency_ms).all()


def test_load_raises_interference():
    """The more the cells send, the lower the SINR: its median falls with every step of load."""
    seen = []
    for rate_hz in (0.5, 8, 40):
        flow = both([50_000], devices=60, rate_hz=rate_hz)
        many = twin.run(several(9, "inh"), [flow], until_s=3, seed=1, drain_s=0.1).many
        values, part = many.sinr_cdf(DOWN)
        seen.append(values[np.searchsorted(part, 0.5)])
    assert seen[0] > seen[1] > seen[2]


def test_what_cannot_be():
    cell = {"name": "a", "scenario": "umi"}
    other = {"slices": [{"name": "all"}], "sites": [{"name": "mast", "kind": "edge"}]}
    for cells_given, said in (
        ([cell, {**cell, "name": "b", "scs_khz": 15, "bandwidth_mhz": 20}], "have bandwidth_mhz 100 and 20"),
        ([cell, cell], "two cells are named a"),
        ([{**cell, "trps": 57}, {**cell, "name": "b"}], "58 cells are given; the layout of umi has 57"),
        ([{**cell, "scenario": "inh", "trps": 13}], "the layout of inh has 12"),
    ):
        with pytest.raises(ValidationError, match=said):
            Network.model_validate({"cells": cells_given, **other})
    with pytest.raises(MacError, match="the emulator and a booking hold one cell"):
        Mac(several(2), [0], seed=1)
    with pytest.raises(MacError, match="need at least one device"):
        twin.run(several(2), [], until_s=1, seed=1)
    bare = Trace("umi", 0.01, *(np.full((1, 1, 1), 20.0),) * 2, np.zeros((1, 3), np.float32), MADE_BY)
    with pytest.raises(TraceError, match="has no losses to other cells"):
        cluster.initial(several(2, "umi"), [0], seed=1, trace=bare)
    with pytest.raises(MacError, match="PUCCH carries scheduling requests"):
        cluster.initial(several(2, sr_resources=1), [0] * 40, seed=1)


def test_cells_by_name():
    """Cells of their own names are the same as so many in one."""
    named = several(2).model_dump()
    named["cells"] = [{**named["cells"][0], "name": name, "trps": 1} for name in ("west", "east")]
    net, flow = Network.model_validate(named), both([9000], devices=10)
    one, other = (twin.run(which, [flow], until_s=2, seed=1) for which in (net, several(2)))
    assert (one.readings["ask"].latency_ms == other.readings["ask"].latency_ms).all()
    assert [row["name"] for row in one.summary()["cells"]] == ["west", "east"]
    assert {span.site for span in one.readings["ask"].spans if span.kind == "air"} == {"cells"}
