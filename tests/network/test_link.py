"""Oracles: TS 38.306 and TS 38.214 figures worked out elsewhere, LDPC simulations, and Sionna where it is installed."""

import json
from importlib.util import find_spec
from math import log2
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.network import link
from airserve.network.cell import PRB_BY_BANDWIDTH, PRB_BY_BANDWIDTH_FR2

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
CQI_1 = [.1523, .2344, .3770, .6016, .8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152,
         5.5547]  # fmt: skip
# Es/N0 at BLER 10 % of 2,000 bits by MCS of table 1: another simulation, of Sionna's own decoder, 300 words a point
SIMULATED_DB = {4: -1.67, 6: 0.43, 10: 3.54, 16: 8.62, 22: 13.64, 27: 18.46}
CURVES = json.loads((Path(link.__file__).parent / "tables" / "ts38212_ldpc_awgn.json").read_text())["curves"]


@pytest.mark.parametrize(("prbs", "symbols", "dmrs", "qm", "rate", "layers", "bits"), TBS)
def test_transport_block_sizes(prbs, symbols, dmrs, qm, rate, layers, bits):
    assert link.tbs_bits(prbs * link.resource_elements(symbols, dmrs), qm, rate / 1024, layers) == bits


def test_no_elements_carry_nothing():
    assert link.tbs_bits(0, 8, 0.9, 4) == 0
    assert link.resource_elements(1, 18) == 0


@settings(deadline=None)  # the first example compiles
@given(elements=st.integers(1, 273 * 156), mcs=st.integers(0, 27), layers=st.integers(1, 4))
def test_a_block_has_whole_bytes_and_is_near_what_was_asked(elements, mcs, layers):
    bits = link.tbs_bits(elements, link.QM[mcs], link.RATE[mcs], layers)
    asked = elements * link.EFFICIENCY[mcs] * layers
    assert bits % 8 == 0
    assert bits >= 24
    assert asked < 24 or abs(bits - asked) <= max(
        64, asked / 16
    )  # the quantum is at most 1/32 of it, half a table step


def test_transport_block_sizes_of_3000_random_cases():
    """tbs_sionna_2_2.npz was written by Sionna 2.2's calculate_tb_size; the next test asks it again where it is."""
    cases = np.load(Path(__file__).parent / "tbs_sionna_2_2.npz")["cases"]  # PRBs, symbols, table, MCS, layers, bits
    assert cases.shape == (3000, 6)
    tables = {index: link.mcs_table(index) for index in (1, 2, 3)}
    for prbs, symbols, index, mcs, layers, bits in cases.tolist():
        qm, rate = tables[index]
        assert link.tbs_bits(prbs * link.resource_elements(symbols, 12), qm[mcs], rate[mcs], layers) == bits


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


@pytest.mark.parametrize(("index", "least", "most"), [(1, 0.1523, 5.5547), (2, 0.1523, 7.4063), (3, 0.0586, 4.5234)])
def test_cqi_tables(index, least, most):
    qm, rate = link.cqi_table(index)
    assert len(qm) == len(rate) == 15
    assert (qm * rate)[[0, -1]] == pytest.approx([least, most], abs=5e-5)
    assert (np.diff(qm * rate) > 0).all()
    if index < 3:
        assert qm * rate == pytest.approx({1: CQI_1, 2: CQI_2}[index], abs=5e-5)
    known = set(zip(*map(tuple, link.mcs_table(index)), strict=True))
    below = 1 if index < 3 else 0  # CQI 1 of tables 1 and 2 is under every MCS
    assert set(zip(qm[below:].tolist(), rate[below:].tolist(), strict=True)) <= known


def test_prbs_leave_a_guard():
    """TS 38.101-1 and -2: the guard of 5.3.3 is what the PRBs leave, half a subcarrier less, on both sides."""
    guard_khz = {(15, 5, 1): 242.5, (30, 100, 1): 845, (60, 100, 1): 1370, (60, 200, 2): 4930, (120, 400, 2): 9860}
    for table, frequency_range in ((PRB_BY_BANDWIDTH, 1), (PRB_BY_BANDWIDTH_FR2, 2)):
        for scs_khz, by_bandwidth in table.items():
            for mhz, prbs in by_bandwidth.items():
                left_khz = (1000 * mhz - scs_khz * (12 * prbs + 1)) / 2
                assert guard_khz.get((scs_khz, mhz, frequency_range), left_khz) == left_khz > 0
                assert 12 * prbs * scs_khz > 780 * mhz


def test_curves_of_table_1_where_they_were_simulated_before():
    qm, rate = link.mcs_table(1)
    for mcs, snr_db in SIMULATED_DB.items():
        wanted = {"modulation_order": qm[mcs], "code_rate_x1024": rate[mcs] * 1024, "code_block_bits": 2000}
        (curve,) = (c for c in CURVES if wanted.items() <= c.items())
        assert curve["middle_db"] + 1.2816 * curve["width_db"] == pytest.approx(snr_db, abs=0.1)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_every_mcs_has_curves_of_small_and_large_code_blocks(index):
    bits, middle_db, width_db = link.waterfalls(index)
    qm, rate = link.mcs_table(index)
    assert len(bits) == len(qm)
    assert bits.shape[1] >= 3
    assert (bits[:, 0] <= 210).all()
    assert (bits[:, -1] == np.where(rate <= 0.25, 3840, 8448)).all()  # TS 38.212 5.2.2
    assert (np.diff(middle_db + 1.28 * width_db, axis=1) < 0.03).all()  # a larger block needs no more
    assert (width_db[:, -1] < width_db[:, 0] / 2).all()


def normal_approximation(snr_db, sent_symbols, bits):
    """BLER of the best code at a length: Polyanskiy, Poor, Verdu 2010, equation 296, real AWGN channel."""
    n, snr = 2 * sent_symbols, 10 ** (snr_db / 10)
    capacity = 0.5 * log2(1 + snr)
    dispersion = snr * (snr + 2) / (2 * (snr + 1) ** 2) * log2(np.e) ** 2
    return NormalDist().cdf((bits - n * capacity - 0.5 * log2(n)) / np.sqrt(n * dispersion))


def test_no_curve_is_better_than_the_normal_approximation():
    for mcs in range(28):
        for bits in (40, 64, 120, 200, 640, 1200, 2000, 3840, *([5000, 8448] if link.RATE[mcs] > 0.25 else [])):
            for target in (0.9, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5):
                snr_db = link.threshold_db(mcs, target, bits)
                assert normal_approximation(snr_db, bits / link.EFFICIENCY[mcs], bits) < target
                if bits >= 200 and target >= 1e-3:  # nor much worse
                    far_db = snr_db - 3.5 - 10 / np.sqrt(bits)
                    assert normal_approximation(far_db, bits / link.EFFICIENCY[mcs], bits) > target


@pytest.mark.parametrize(
    "curve", CURVES, ids=lambda c: f"{c['modulation_order']}-{c['code_rate_x1024']}-{c['code_block_bits']}"
)
def test_fitted_curves_go_through_the_counts(curve):
    snr_db, words, errors = (np.array(curve[key], float) for key in ("snr_db", "words", "errors"))
    expected = np.array([NormalDist().cdf((curve["middle_db"] - x) / curve["width_db"]) for x in snr_db])
    spread = np.sqrt(words * expected * (1 - expected) + 1)
    assert np.mean(((errors - expected * words) / spread) ** 2) < 3
    assert errors.sum() >= 50
    assert words.sum() >= 400
    assert curve["sent_bits"] >= curve["code_block_bits"] / curve["code_rate_x1024"] * 1024


@settings(deadline=None)  # the first example compiles
@given(bits=st.integers(3, 200_000).map(lambda n: 8 * n), mcs=st.integers(0, 28), index=st.sampled_from([1, 2, 3]))
def test_code_blocks_hold_the_transport_block_and_its_checks(bits, mcs, index):
    rate = link.mcs_table(index)[1][min(mcs, 27)]
    blocks, size = link.code_blocks(bits, rate)
    largest = 3840 if rate <= 0.25 or bits <= 292 or (bits <= 3824 and rate <= 0.67) else 8448
    assert size <= largest
    assert blocks * size >= bits + (24 if bits > 3824 else 16) + (24 * blocks if blocks > 1 else 0)
    assert blocks == 1 or (blocks - 1) * (largest - 24) < bits + 24


@settings(deadline=None)  # the first example compiles
@given(elements=st.integers(1, 273 * 156), mcs=st.integers(0, 27), layers=st.integers(1, 4))
def test_transport_blocks_fill_their_code_blocks(elements, mcs, layers):
    """TS 38.214 5.1.3.2 chooses sizes so that TS 38.212 5.2.2 leaves no bit over."""
    bits = link.tbs_bits(elements, link.QM[mcs], link.RATE[mcs], layers)
    blocks, size = link.code_blocks(bits, link.RATE[mcs])
    assert blocks == 1 or blocks * (size - 24) == bits + 24


@pytest.mark.skipif(find_spec("sionna") is None, reason="compares with Sionna's transport blocks")
def test_code_blocks_equal_sionna():
    from sionna.phy.nr.utils import calculate_tb_size

    rng = np.random.default_rng(3)
    for _ in range(60):
        mcs, elements, layers = int(rng.integers(28)), int(rng.integers(50, 273 * 150)), int(rng.integers(1, 5))
        theirs = calculate_tb_size(
            int(link.QM[mcs]), float(link.RATE[mcs]), target_tb_size=elements * link.EFFICIENCY[mcs] * layers,
            num_coded_bits=int(elements * link.QM[mcs] * layers), num_layers=layers, return_cw_length=False,
        )  # fmt: skip
        bits, size, blocks = int(theirs[0]), int(theirs[1]), int(theirs[2])
        assert link.code_blocks(bits, link.RATE[mcs]) == (blocks, size)


def test_a_transport_block_is_lost_with_any_of_its_code_blocks():
    for mcs, bits in ((27, 1_081_512), (12, 100_000), (0, 9_000)):
        blocks, size = link.code_blocks(bits, link.RATE[mcs])
        snr_db = link.threshold_db(mcs, 0.05, size)
        assert blocks > 1
        assert link.bler(snr_db, mcs, bits) == pytest.approx(1 - 0.95**blocks, rel=1e-6)


def test_one_threshold_serves_small_and_large_transport_blocks():
    """Link adaptation goes by blocks of 2,000 bits; up to 1 Mbit the SNR for the same loss is within 0.4 dB of it."""
    for mcs in range(28):
        for bits in (2000, 20_000, 1_000_000):
            at_db = [snr for snr in np.arange(-1, 1, 0.02) if link.bler(link.THRESHOLD_DB[mcs] + snr, mcs, bits) <= 0.1]
            assert abs(at_db[0]) <= 0.4


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
        assert link.threshold_db(mcs) == pytest.approx(theirs_db, abs=1.1)  # known to be up to 0.75 dB optimistic


@pytest.mark.parametrize("bits", [24, 200, 1984, 8424, 60_000])
def test_block_errors(bits):
    snr_db = np.linspace(-20, 45, 600)
    for mcs in range(28):
        lost = np.array([link.bler(snr, mcs, bits) for snr in snr_db])
        assert (np.diff(lost) <= 0).all()
        assert lost[0] > 1 - 1e-9
        assert lost[-1] == link.BLER_FLOOR
    for snr in snr_db[::20]:  # a higher MCS is never safer
        assert (np.diff([link.bler(snr, mcs, bits) for mcs in range(28)]) >= -0.01).all()


def test_thresholds_are_where_blocks_are_lost_so_often():
    for target in (0.5, 0.1, 0.02, 1e-2, 1e-3, 1e-5):
        for mcs, snr_db in enumerate(link.thresholds_db(target)):
            assert link.code_block_error(snr_db, mcs, 2000) == pytest.approx(target)
            assert link.bler(snr_db, mcs) == pytest.approx(target)
    just_above, just_below = (link.code_block_error(link.threshold_db(5, 1e-2) + d, 5, 2000) for d in (-1e-6, 1e-6))
    assert just_above == pytest.approx(just_below, rel=1e-4)  # the tail begins without a step


def test_evm_is_a_ceiling():
    assert link.with_evm_db(200.0) == pytest.approx(-20 * np.log10(0.035))
    assert link.with_evm_db(-10.0) == pytest.approx(-10, abs=0.001)
    assert 10 ** (-link.with_evm_db(25.0) / 10) == pytest.approx(10**-2.5 + 0.035**2)
