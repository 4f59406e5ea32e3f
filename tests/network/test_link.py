"""Oracles: TS 38.306 and TS 38.214 figures worked out elsewhere, LDPC simulations, and Sionna where it is installed."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.network import link

TBS = [  # PRBs, symbols, DMRS elements, Qm, R x 1024, layers, bits: equal in two implementations
    (273, 12, 12, 8, 948, 4, 1081512),
    (273, 14, 18, 8, 948, 4, 1213032),
    (273, 8, 12, 8, 948, 4, 671976),
    (273, 12, 12, 6, 948, 2, 401640),
    (106, 12, 12, 4, 616, 2, 67584),
    (51, 12, 12, 8, 948, 2, 100392),
    (51, 12, 12, 8, 682.5, 1, 35856),
    (16, 12, 12, 6, 873, 1, 10760),
    (273, 12, 12, 2, 120, 1, 8448),
    (1, 12, 12, 2, 120, 1, 24),
]
PEAK = [  # PRBs, kHz, layers, Qm, direction, frequency range, Mbit/s
    (273, 30, 4, 8, "down", 1, 2337.00),
    (273, 30, 1, 8, "up", 1, 625.01),
    (273, 30, 2, 6, "up", 1, 937.52),
    (273, 30, 2, 8, "up", 1, 1250.02),
    (106, 30, 4, 8, "down", 1, 907.41),
    (51, 30, 4, 8, "down", 1, 436.58),
    (106, 15, 4, 8, "down", 1, 453.70),
    (264, 120, 2, 6, "down", 2, 3232.26),
]
CQI_2 = [.1523, .3770, .8770, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547, 6.2266, 6.9141,
         7.4063]  # fmt: skip
SIMULATED_DB = {3: 0.43, 10: 8.62, 15: 13.64, 20: 18.46}  # MCS of table 2 with the efficiency of a simulated one


@pytest.mark.parametrize(("prbs", "symbols", "dmrs", "qm", "rate", "layers", "bits"), TBS)
def test_transport_block_sizes(prbs, symbols, dmrs, qm, rate, layers, bits):
    assert link.tbs_bits(prbs * link.resource_elements(symbols, dmrs), qm, rate / 1024, layers) == bits


def test_no_elements_carry_nothing():
    assert link.tbs_bits(0, 8, 0.9, 4) == 0
    assert link.resource_elements(1, 18) == 0


@given(elements=st.integers(1, 273 * 156), mcs=st.integers(0, 27), layers=st.integers(1, 4))
def test_a_block_has_whole_bytes_and_is_near_what_was_asked(elements, mcs, layers):
    bits = link.tbs_bits(elements, link.QM[mcs], link.RATE[mcs], layers)
    asked = elements * link.EFFICIENCY[mcs] * layers
    assert bits % 8 == 0
    assert bits >= 24
    assert asked < 24 or abs(bits - asked) <= max(
        64, asked / 16
    )  # the quantum is at most 1/32 of it, half a table step


def test_transport_block_sizes_equal_sionna():
    pytest.importorskip("sionna")
    import torch
    from sionna.phy.nr.utils import calculate_tb_size

    rng = np.random.default_rng(0)
    mcs, prbs, symbols, layers = (rng.integers(*ends, 3000) for ends in ((0, 28), (1, 274), (2, 15), (1, 5)))
    theirs = calculate_tb_size(
        torch.tensor(link.QM[mcs]),
        torch.tensor(link.RATE[mcs]),
        num_prbs=torch.tensor(prbs),
        num_ofdm_symbols=torch.tensor(symbols),
        num_dmrs_per_prb=torch.full((3000,), 12),
        num_layers=torch.tensor(layers),
        return_cw_length=False,
    )[0]
    ours = [
        link.tbs_bits(p * link.resource_elements(s, 12), link.QM[m], link.RATE[m], n)
        for m, p, s, n in zip(mcs, prbs, symbols, layers, strict=True)
    ]
    assert ours == theirs.tolist()


@pytest.mark.parametrize(("prbs", "scs_khz", "layers", "qm", "direction", "frequency_range", "mbps"), PEAK)
def test_peak_rates(prbs, scs_khz, layers, qm, direction, frequency_range, mbps):
    rate_bps = link.peak_rate_bps(prbs, scs_khz, layers, qm, 948 / 1024, direction, frequency_range)
    assert rate_bps / 1e6 == pytest.approx(mbps, abs=0.005)


@pytest.mark.parametrize(("index", "size", "least", "most"), [(1, 29, 0.2344, 5.5547), (2, 28, 0.2344, 7.4063),
                                                              (3, 29, 0.0586, 4.5234)])  # fmt: skip
def test_mcs_tables(index, size, least, most):
    qm, rate = link.mcs_table(index)
    assert len(qm) == len(rate) == size
    assert (qm * rate)[[0, -1]] == pytest.approx([least, most], abs=5e-5)
    assert (np.diff(qm) >= 0).all()


def test_mcs_table_2_holds_the_efficiencies_of_cqi_table_2():
    assert np.abs(link.EFFICIENCY[:, None] - np.array(CQI_2[1:])).min(axis=0).max() < 5e-5


def test_thresholds_where_a_code_of_that_efficiency_was_simulated():
    for mcs, snr_db in SIMULATED_DB.items():
        assert link.threshold_db(mcs) == pytest.approx(snr_db, abs=0.01)


def test_thresholds_rise_and_stay_beyond_shannon():
    assert (np.diff(link.THRESHOLD_DB) > 0).all()
    assert (2**link.EFFICIENCY - 1 < 10 ** (link.THRESHOLD_DB / 10)).all()
    with pytest.raises(IndexError, match="0 to 27"):
        link.threshold_db(28)


@pytest.mark.skipif(find_spec("sionna") is None, reason="compares with Sionna's BLER tables")
def test_thresholds_are_near_the_tables_of_sionna():
    spec = find_spec("sionna")
    assert spec
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "sys" / "bler_tables" / "PDSCH_table2.json"
    table = json.loads(file.read_text())["category"]["1"]["index"]["2"]["MCS"]
    for mcs in range(5, 26):  # MCS 26 and 27 end before BLER 10 % or 1 %
        entry = table[str(mcs)]
        rate = np.minimum.accumulate(np.clip(entry["CBS"]["2000"]["BLER"], 1e-6, 1))
        theirs_db = np.interp(1, -np.log10(rate), entry["SNR_db"])
        assert link.threshold_db(mcs) == pytest.approx(theirs_db, abs=1.0)  # known to be up to 0.75 dB optimistic


def test_block_errors():
    snr_db = np.linspace(-20, 45, 600)
    for mcs in range(28):
        lost = np.array([link.bler(snr, mcs) for snr in snr_db])
        assert (np.diff(lost) <= 0).all()
        assert lost[0] == 1
        assert lost[-1] == link.BLER_FLOOR
        assert link.bler(link.threshold_db(mcs), mcs) == pytest.approx(0.1)
        assert link.bler(link.threshold_db(mcs) + link.margin_db(0.02), mcs) == pytest.approx(0.02)
    for snr in snr_db[::20]:  # a higher MCS is never safer
        assert (np.diff([link.bler(snr, mcs) for mcs in range(28)]) >= 0).all()


def test_evm_is_a_ceiling():
    assert link.with_evm_db(200.0) == pytest.approx(-20 * np.log10(0.035))
    assert link.with_evm_db(-10.0) == pytest.approx(-10, abs=0.001)
    assert 10 ** (-link.with_evm_db(25.0) / 10) == pytest.approx(10**-2.5 + 0.035**2)


@settings(deadline=None)  # the first call compiles
@given(snr_db=st.floats(-30, 60), prbs=st.integers(1, 273))
def test_an_uplink_grant_has_the_power_of_the_whole_band(snr_db, prbs):
    sinr = 10 ** (link.uplink_snr_db(snr_db, prbs, 273) / 10)
    snr = 1 / (1 / sinr - 0.035**2)  # EVM taken out again
    assert snr * prbs == pytest.approx(273 * 10 ** (snr_db / 10), rel=1e-4)
