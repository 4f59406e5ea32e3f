"""RedCap devices against the peak-rate formula, the limits of TS 38.306 4.2.21, and their own channels."""

import numpy as np
import pytest

from airserve.network import link, radio, twin
from airserve.network.budget import budget
from airserve.network.cell import Cell
from airserve.network.equipment import EquipmentError, heard_by, parse
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.traffic import Flow

TOP_64QAM = len(link.ALL_QM) - 1


@pytest.fixture
def clear():
    """A trace of 60 dB on every layer, for devices with all antennas and with fewer."""
    snr = np.full((1, 1, 4), 60, np.float32)
    return radio.Trace(
        "inf-dh", 0.01, snr, snr[..., :2], np.zeros((1, 3), np.float32), {},
        snr_down_1_db=snr[..., :1], snr_down_2_db=snr[..., :2], snr_up_1_db=snr[..., :1],
    )  # fmt: skip


@pytest.mark.parametrize("scs_khz", [15, 30, 60])
@pytest.mark.parametrize("direction", [DOWN, UP])
@pytest.mark.parametrize(
    ("kind", "layers", "qm", "mcs"),
    [("redcap", 1, 6, TOP_64QAM), ("redcap,antennas=2,qam=256", 2, 8, link.FIRST_64QAM - 1)],
)
def test_a_saturated_device_has_the_peak_rate_of_20_mhz(network, clear, scs_khz, direction, kind, layers, qm, mcs):
    """TS 38.306 4.1.2 on the PRBs of 20 MHz, less overheads that `budget` itemises, in a cell that is wider."""
    of, wide = {"scs_khz": scs_khz, "reference_signals": False}, 50 if scs_khz == 15 else 100
    layers, way = (1 if direction == UP else layers), ("up" if direction == UP else "down")
    expected = budget(Cell(name="hall", bandwidth_mhz=20, **of), way, layers=layers, mcs=mcs)
    prbs = {15: 106, 30: 51, 60: 24}[scs_khz]
    overhead = 0.08 if direction == UP else 0.14
    formula_mbps = 1e-6 * layers * qm * 948 / 1024 * prbs * 12 * 14e3 * scs_khz / 15 * (1 - overhead)
    assert expected.formula_mbps == pytest.approx(formula_mbps, rel=1e-9)
    mac = Mac(network(bandwidth_mhz=wide, **of), [0], seed=1, trace=clear, grant="configured", kinds=[kind])
    mac.offer(0, direction, 100_000_000, 0.0)
    mac.run(1.0)
    one = mac._state.flow[direction]
    assert one["delivered"] * 8e-6 * 1400 / 1450 == pytest.approx(expected.goodput_mbps, rel=0.01)


def test_no_grant_passes_20_mhz(network):
    rng = np.random.default_rng(1)
    mac = Mac(network(), [0] * 20, seed=1, kinds=["redcap"] * 10 + ["full"] * 10)
    mac.offer_all(rng.integers(0, 20, 200), rng.integers(0, 2, 200), 200_000, rng.uniform(0, 0.3, 200))
    most = np.zeros(20, np.int64)
    for slot in range(1, 400):
        mac.run(slot * 0.0005)
        block = mac._state.block[mac._state.block["sent"] == slot - 1]
        np.maximum.at(most, block["flow"] % 20, block["prbs"])
        assert (block["layers"][block["flow"] % 20 < 10] <= 1).all()
    assert most[:10].max() == 51
    assert most[10:].max() > 150


def test_half_duplex_devices_do_one_thing_at_a_time(network, clear):
    mac = Mac(network(duplex="fdd"), [0], seed=1, trace=clear, grant="configured", kinds=["redcap,duplex=half"])
    for direction in (DOWN, UP):
        mac.offer(0, direction, 100_000_000, 0.0)
    served = np.zeros(2, np.int64)
    for slot in range(400):
        mac.run((slot + 1) * 0.0005)
        now = mac._state.flow["served"] == slot
        assert now.sum() <= 1
        served += now
    assert served[DOWN] == pytest.approx(served[UP], abs=10)
    assert served.sum() > 390


@pytest.mark.parametrize("kind", ["redcap", "redcap,antennas=2"])
@pytest.mark.parametrize("scenario", ["inf-dh", "umi"])
def test_fewer_antennas_hear_less(scenario, kind):
    """One antenna hears a quarter of the power that four do, all of it on one layer; the best of two or four more."""
    trace = radio.load(Cell(name="hall", scenario=scenario))
    heard = heard_by(parse(kind), Cell(name="hall", scenario=scenario), trace)
    fewer = heard.snr_down_db[..., 0].astype(float)
    lost_db = (trace.snr_down_db[..., 0] - fewer).mean()
    assert 2 < lost_db < 7
    if kind == "redcap":
        assert heard.snr_down_db.shape[-1] == 1
        right = trace.snr_all_db - 10 * np.log10(4) + 10 * np.log10(1 - 10 ** (np.minimum(trace.csi_error_db, -1) / 10))
        assert -2 < np.median(fewer - right) < 0.5  # a band with fades carries less than its mean power would
    assert (fewer <= trace.snr_down_db[..., 0] + 1).mean() > 0.99
    assert (heard.snr_up_db[..., 0] <= trace.snr_up_db[..., 0] + 1).mean() > 0.99


@pytest.mark.parametrize("mimo", ["su", "mu"])
def test_bytes_in_are_bytes_out(network, mimo):
    rng = np.random.default_rng(1)
    mac = Mac(network(mimo=mimo), [0] * 12, seed=1, kinds=["redcap", "full", "redcap,antennas=2"] * 4)
    sizes = rng.integers(1, 60_000, 300)
    mac.offer_all(rng.integers(0, 12, 300), rng.integers(0, 2, 300), sizes, rng.uniform(0, 0.2, 300))
    done = mac.run(8.0)
    assert mac.idle
    assert done["nbytes"].sum() == sizes.sum()


def test_several_cells_know_kinds(network):
    cells = network(trps=2)
    ask = [
        Flow(kind, "all", 4, 20.0, site="mast", bytes_up=[200], bytes_down=[60_000], ue=kind)
        for kind in ("full", "redcap")
    ]
    seen = twin.run(cells, ask, until_s=2, seed=1).readings
    assert np.median(seen["redcap"].latency_ms) > np.median(seen["full"].latency_ms) + 2


def test_table_1_has_the_thresholds_of_table_2_where_they_meet():
    both = list(zip(link.ALL_QM.tolist(), link.ALL_RATE.tolist(), strict=True))
    shared = [(both.index(one), k) for k, one in enumerate(both) if k >= link.FIRST_64QAM and one in both[:28]]
    assert len(shared) > 10
    for one, other in shared:
        assert link.ALL_THRESHOLD_DB[one] == link.ALL_THRESHOLD_DB[other]
        assert link.bler(10.0, one, 8000) == link.bler(10.0, other, 8000)
    assert link.bler(link.ALL_THRESHOLD_DB[TOP_64QAM], TOP_64QAM) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("wrong", ["phone", "redcap,antennas=4", "redcap,antenna=1", "full,qam=64", "redcap,qam"])
def test_kinds_that_cannot_be(wrong):
    with pytest.raises(EquipmentError, match="redcap"):
        parse(wrong)


def test_an_old_trace_knows_no_fewer_antennas(network, flat):
    with pytest.raises(radio.TraceError, match="make it again"):
        Mac(network(), [0], seed=1, trace=flat(20), kinds=["redcap"])
