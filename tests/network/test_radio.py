"""Oracles: exhaustive link adaptation, the path loss formula of TR 38.901 at the stored positions, arithmetic."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from airserve.network import link, radio
from airserve.network.cell import Cell, Scenario

HALL = Cell(name="hall")


@pytest.fixture(scope="module")
def trace():
    return radio.load(HALL)


SCENARIOS = get_args(Scenario)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_shipped_traces(scenario):
    trace = radio.load(Cell(name="cell", scenario=scenario))
    assert trace.scenario == scenario
    assert trace.positions == len(np.unique(trace.position_m, axis=0)) == 50
    assert trace.snr_down_db.shape == (50, 100, 4)
    assert trace.snr_up_db.shape == (50, 100, 2)
    assert trace.snr_down_db.dtype == trace.snr_up_db.dtype == np.int8
    for snr_db in (trace.snr_down_db, trace.snr_up_db):
        mean_db = snr_db.mean(axis=1)
        within = (mean_db[:, 1:] > -39) & (mean_db[:, :-1] < 59)  # SNR is kept from -40 to 60 dB
        assert (np.diff(mean_db, axis=-1) < 0)[within].all()  # power is shared by the layers
    assert {"seed", "speed_ms", "versions", "gnb_position_m"} <= set(trace.made_by)
    cells = len(trace.cell_position_m)
    assert cells == {"inh": 13}.get(scenario, 19 if scenario.startswith("inf") else 57)
    assert trace.coupling_loss_db.shape == (50, 100, cells)
    assert trace.direction.shape == (50, 100, 2, 32, 2)
    assert trace.cell_position_m[0] == pytest.approx(trace.made_by["gnb_position_m"])


def test_shipped_traces_are_small():
    folder = Path(radio.__file__).parent / "traces"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_coupling_loss_agrees_with_the_directions(scenario):
    """Of the power that 4 antennas hear from 32 ports, the strongest direction has between a 32nd and all."""
    trace = radio.load(Cell(name="cell", scenario=scenario))
    noise_dbm = -174 + 9 + 10 * np.log10(273 * 12 * 30e3)
    heard_db = trace.made_by["gnb_power_dbm"] - noise_dbm - trace.coupling_loss_db[..., 0]
    gain_db = (trace.snr_direction_db[..., 0] - heard_db)[trace.coupling_loss_db[..., 0] < 255]
    assert gain_db.min() > 10 * np.log10(4) - 1.1  # two values are rounded
    assert gain_db.max() < 10 * np.log10(128) + 1.1
    assert (np.diff(trace.snr_direction_db, axis=-1) <= 0).all()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_cells_out_of_range_are_left_out(scenario):
    trace = radio.load(Cell(name="cell", scenario=scenario))
    loss_db = trace.coupling_loss_db.astype(float)
    assert (loss_db == 255).all(axis=1).sum() == (loss_db == 255).any(axis=1).sum()  # a cell for all time or not at all
    mean_db = np.where(loss_db == 255, np.nan, loss_db).mean(axis=1)
    spread_db = np.nanmax(mean_db, axis=1) - np.nanmin(mean_db, axis=1)
    assert spread_db.max() < 32
    assert (mean_db[~np.isnan(mean_db)] > 30).all()
    near = np.linalg.norm(trace.position_m[:, None] - trace.cell_position_m, axis=-1)
    assert np.corrcoef(np.log10(near[~np.isnan(mean_db)]), mean_db[~np.isnan(mean_db)])[0, 1] > 0.2  # farther is weaker


def test_directions_are_orthogonal_unit_vectors(trace):
    first, second = np.moveaxis(trace.directions(), 2, 0)
    assert np.abs(np.linalg.norm(first, axis=-1) - 1).max() < 1e-6
    assert np.abs((first.conj() * second).sum(axis=-1)).max() < 0.05  # 8 bits


def test_a_trace_of_before_has_no_directions(trace, tmp_path):
    old = replace(trace, coupling_loss_db=None, cell_position_m=None, direction=None, snr_direction_db=None)
    np.savez(
        tmp_path / "old.npz", scenario="inf-dh", snapshot_s=0.01, snr_down_db=old.snr_down_db, snr_up_db=old.snr_up_db,
        position_m=old.position_m, made_by="{}",
    )  # fmt: skip
    read = radio.read(tmp_path / "old.npz")
    assert read.positions == 50
    assert read.coupling_loss_db is None
    with pytest.raises(radio.TraceError, match="no transmit directions"):
        read.directions()


@pytest.mark.parametrize(
    ("scenario", "loss_db"),
    [("inf-dh", lambda d: 33.63 + 21.9 * np.log10(d)), ("inf-sl", lambda d: 33 + 25.5 * np.log10(d))],
)
def test_snr_agrees_with_path_loss(scenario, loss_db):
    """TR 38.901 7.4.1 NLOS, noise and the element's pattern; 16 positions of 2 polarizations gain 12 dB."""
    trace = radio.load(Cell(name="cell", scenario=scenario))
    made = trace.made_by
    way = trace.position_m - np.array(made["gnb_position_m"])
    distance_m = np.linalg.norm(way, axis=1)
    down_tilt = np.arctan2(made["gnb_position_m"][2] - 1.5, 60)
    ahead = way[:, 0] * np.cos(down_tilt) - way[:, 2] * np.sin(down_tilt)
    above = way[:, 0] * np.sin(down_tilt) + way[:, 2] * np.cos(down_tilt)
    azimuth, elevation = np.degrees(np.arctan2(way[:, 1], ahead)), np.degrees(np.arcsin(above / distance_m))
    pattern_db = 8 - np.minimum(12 * (azimuth / 65) ** 2 + 12 * (elevation / 65) ** 2, 30)
    path_db = pattern_db - loss_db(distance_m) - 20 * np.log10(3.5) + 12
    noise_dbm = -174 + 10 * np.log10(273 * 12 * 30e3)
    up_db = trace.snr_up_db[..., 0].mean(axis=1) - (23 - noise_dbm - 5 + path_db)
    down_db = trace.snr_down_db[..., 0].mean(axis=1) - (24 - noise_dbm - 9 + path_db)
    assert abs(np.median(up_db)) < 4.5
    assert abs(np.median(down_db)) < 4.5
    assert 3 < up_db.std() < 9  # shadowing of 4.0 or 5.7 dB, and reflections that the pattern does not know


def test_nothing_jumps(trace):
    """10 ms at walking speed is a tenth of a wavelength: most steps change rank-1 SNR by at most 1 dB."""
    steps = np.abs(np.diff(trace.snr_up_db[..., 0].astype(int), axis=1))
    assert np.percentile(steps, 95) <= 1


def test_link_adaptation_is_the_best_there_is(trace):
    for direction, share in (("down", 1.0), ("up", 1.0), ("up", 0.1)):
        mcs, layers, sinr_db = radio.rates(trace, direction, share=share)
        stored = trace.snr_down_db if direction == "down" else trace.snr_up_db
        for ue, t in [(0, 0), (7, 31), (49, 99), (20, 50)]:
            sinr = [link.with_evm_db(float(s) - 10 * np.log10(share)) for s in stored[ue, t]]
            best = max(
                link.EFFICIENCY[m] * (r + 1)
                for r in range(len(sinr))
                for m in range(28)
                if sinr[r] >= link.threshold_db(m)
            )
            assert link.EFFICIENCY[mcs[ue, t]] * layers[ue, t] == best
            assert sinr_db[ue, t] == pytest.approx(sinr[layers[ue, t] - 1], abs=1e-4)


def _with_snr(trace, snr_db):
    flat = np.full_like(trace.snr_up_db, snr_db)
    return radio.Trace(trace.scenario, trace.snapshot_s, trace.snr_down_db, flat, trace.position_m, {})


def test_out_of_coverage_is_mcs_0_and_blocks_are_lost(trace):
    mcs, layers, sinr_db = radio.rates(_with_snr(trace, -20), "up")
    assert not mcs.any()
    assert (layers == 1).all()
    assert link.bler(float(sinr_db[0, 0]), 0) == 1


def test_a_stricter_target_takes_a_safer_mcs(trace):
    for snr_db in (0, 10, 20):
        flat = _with_snr(trace, snr_db)
        mcs, _, sinr_db = radio.rates(flat, "up", target_bler=0.001, max_layers=1)
        assert mcs[0, 0] <= radio.rates(flat, "up", max_layers=1)[0][0, 0]
        assert link.bler(float(sinr_db[0, 0]), int(mcs[0, 0])) <= 0.001


def test_uplink_capacity_of_a_hall_is_that_of_the_top_mcs(trace):
    """TS 38.306: 625 Mbit/s on one layer, of which DDDSU leaves a fifth to U slots: 125 Mbit/s."""
    mcs, layers, _ = radio.rates(trace, "up", max_layers=1)
    bits = [link.tbs_bits(273 * link.resource_elements(14, 12), link.QM[m], link.RATE[m], 1) for m in mcs.ravel()]
    assert (layers == 1).all()
    assert np.mean(bits) / 0.5e-3 / 5 / 1e6 == pytest.approx(125, rel=0.05)


def test_ues_get_rows_without_repetition_while_they_last(trace):
    rows, offsets = radio.assign(trace, 120, np.random.default_rng(1))
    assert len(rows) == len(offsets) == 120
    assert sorted(rows[:50]) == sorted(rows[50:100]) == list(range(50))
    assert len(set(rows[100:])) == 20
    assert offsets.min() >= 0
    assert offsets.max() < 198
    again, _ = radio.assign(trace, 120, np.random.default_rng(1))
    assert (rows == again).all()
    assert len(radio.assign(trace, 0, np.random.default_rng(1))[0]) == 0


def test_another_bandwidth_has_the_same_power(trace):
    narrow = radio.load(Cell(name="hall", bandwidth_mhz=20, scs_khz=15))
    shift = narrow.snr_up_db.astype(int) - trace.snr_up_db
    assert (shift == round(10 * np.log10(273 * 30 / (106 * 15)))).all()
    assert narrow.made_by["rescaled_to_mhz"] == 20


def test_a_missing_trace_names_the_command(tmp_path):
    with pytest.raises(radio.TraceError, match=r"airserve traces inf-dh --gnb-ports 64`.*airserve\[radio\]"):
        radio.load(Cell(name="hall", gnb_ports=64), tmp_path)


def test_traces_of_this_machine_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRSERVE_HOME", str(tmp_path))
    (tmp_path / "traces").mkdir()
    file = tmp_path / "traces" / radio.file_name(HALL)
    file.write_bytes(b"PK\x03\x04 not a trace")
    with pytest.raises(radio.TraceError, match="is not a radio trace"):
        radio.load(HALL)
    np.savez(file, scenario="inf-dh")
    with pytest.raises(radio.TraceError, match="snapshot_s"):
        radio.load(HALL)


def test_importing_the_radio_loads_neither_torch_nor_sionna():
    code = "import sys, airserve.network.radio; sys.exit(bool({'torch', 'sionna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
