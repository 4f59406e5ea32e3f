"""Numerology, duplex and overheads: what a slot has for data, and where the rest of a carrier's bits go."""

import numpy as np
import pytest
from pydantic import ValidationError

from airserve.network import control, frame, link
from airserve.network.budget import budget
from airserve.network.cell import Cell
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.presets import PRESETS

FR2 = {"carrier_ghz": 28.0, "scs_khz": 120}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tdd": "DDD"}, r"tdd D has no slot in which devices could send data.*the uplink: add U"),
        ({"tdd": "UUU"}, r"no slot in which the base station could send data.*add D"),
        ({"tdd": "DDDS"}, "add U"),  # two uplink symbols carry SRS and no data
        ({"tdd": "DDFU"}, "not a pattern of D, S and U"),
        ({"tdd": ""}, "not a pattern"),
        ({"special": [10, 2, 3]}, r"special \[10, 2, 3\] .* 14 together"),
        ({"special": [16, -4, 2]}, "14 together"),
        ({"duplex": "fdd", "tdd": "DSU"}, "both directions in every slot; remove tdd: DSU"),
        ({"bandwidth_mhz": 70, "scs_khz": 15}, r"does not exist at 15 kHz; TS 38.101-1 has 5, 10"),
        ({"scs_khz": 120}, r"120 carries no data at 3.5 GHz; TS 38.101-1 has 15, 30, 60 kHz"),
        ({"carrier_ghz": 28.0}, r"30 carries no data at 28 GHz; TS 38.101-2 has 60, 120 kHz"),
        ({**FR2, "bandwidth_mhz": 80}, r"does not exist at 120 kHz; TS 38.101-2 has 50, 100, 200, 400"),
        ({"carrier_ghz": 10.0}, "10 lies in no frequency range of NR"),
        ({**FR2, "ue_capability": 2}, "ue_capability 2 does not exist at 120 kHz"),
    ],
)
def test_cells_that_do_not_exist(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Cell(name="hall", **wrong)


@pytest.mark.parametrize(
    ("cell", "prbs"),
    [
        ({"scs_khz": 15, "bandwidth_mhz": 20}, 106),
        ({"scs_khz": 60}, 135),
        ({"scs_khz": 60, "carrier_ghz": 28.0}, 132),
        ({**FR2, "bandwidth_mhz": 400}, 264),
        ({"duplex": "fdd", "bandwidth_mhz": 40}, 106),
    ],
)
def test_cells_that_do(cell, prbs):
    one = Cell(name="hall", **cell)
    assert one.prbs == prbs
    assert Cell.model_validate(one.model_dump()) == one
    assert one.slot_ms == 15 / one.scs_khz


def test_a_pattern_may_have_any_length():
    """Eleven slots at 30 kHz against 20 ms of reference signals: all repeats after 440 slots."""
    long = Cell(name="hall", tdd="DDDDDDDDSUU", special=(6, 4, 4))
    slots = frame.pattern(long)
    assert len(slots) == 440
    assert frame.carries(long, "up") == tuple(letter in "SU" for letter in long.tdd)
    assert slots["elements"][19].tolist() == [12 * (6 - 2 - 1), 12 * (4 - 1 - 1)]
    for at in range(440):
        for way, name in enumerate(("next_down", "next_up")):
            to = (at + slots[name][at]) % 440
            assert slots["elements"][to, way] > 0
            assert not slots["elements"][[k % 440 for k in range(at, at + slots[name][at])], way].any()


def test_signals_take_what_their_clauses_say():
    """One SSB of 960 elements, 32 of CSI-RS and 12 of tracking a PRB in 20 ms; two PRACH occasions of 12 PRBs."""
    hall = Cell(name="hall")
    taken = {name: int(elements.sum()) for name, elements in frame.taken(hall).items()}
    assert taken == {
        "PDCCH": 32 * 2 * 12 * 273,
        "PUCCH and SRS": 8 * 12 * 273,
        "DM-RS": 40 * 12 * 273,
        "SSB": 960,
        "CSI-RS": 32 * 273,
        "tracking": 12 * 273,
        "PRACH": 2 * 12 * 144,
    }
    bare = frame.pattern(Cell(name="hall", reference_signals=False))["elements"]
    assert np.unique(bare, axis=0).tolist() == [[0, 144], [84, 0], [132, 0]]


@pytest.mark.parametrize(
    "cell",
    [
        {},
        {"duplex": "fdd", "bandwidth_mhz": 20, "scs_khz": 15},
        {"tdd": "DDSUU", "special": [4, 2, 8], "bandwidth_mhz": 50},
        {**FR2, "gnb_ports": 8},
    ],
)
@pytest.mark.parametrize(("way", "direction"), [("down", DOWN), ("up", UP)])
def test_a_saturated_device_gets_the_formula_less_itemised_overheads(network, flat, cell, way, direction):
    """TS 38.306 4.1.2 without its flat overhead, less every item, is what arrives; and the items add up."""
    net = network(**cell)
    whole = budget(net.cell, way, layers=1)
    flat_overhead = link.OVERHEAD[net.cell.frequency_range, way]
    assert whole.raw_mbps == pytest.approx(whole.formula_mbps / (1 - flat_overhead))
    assert whole.raw_mbps - sum(whole.items.values()) == pytest.approx(whole.goodput_mbps, rel=1e-12)
    assert min(whole.items.values()) >= -0.01 * whole.raw_mbps  # sizes of transport blocks may round up
    mac = Mac(net, [0], seed=1, trace=flat(60), grant="configured")
    seconds = 0.5
    for _ in range(int(1.2 * seconds * whole.goodput_mbps * 1e6 / 8 / 14_000)):
        mac.offer(0, direction, 14_000, 0.0)
    mac.run(seconds)
    assert not mac.idle
    assert mac.usage().failed == 0
    assert mac.usage().mbps[0, direction] == pytest.approx(whole.goodput_mbps, rel=0.01)


def test_grants_end_where_the_pdcch_does(network, flat):
    """Devices at the edge take 16 elements each of 45: two grants a slot, in either direction, however many PRBs."""
    weak = float(np.floor(control.threshold_db(8)))  # 8 elements do not reach it
    for snr_db, grants in ((weak, 2), (60, 45)):
        mac = Mac(network(), [0] * 60, seed=1, trace=flat(*[snr_db] * 60), grant="configured")
        for ue in range(60):
            for direction in (DOWN, UP):
                mac.offer(ue, direction, 1, 0.001)
        done = mac.run(30.0)
        first = done["granted_s"][done["direction"] == DOWN]
        _, many = np.unique(np.rint(first / 0.0005), return_counts=True)
        assert many[:2].max() == min(grants, 60)


def test_more_elements_carry_a_grant_further():
    thresholds = [control.threshold_db(level) for level in control.LEVELS]
    steps = -np.diff(thresholds)
    assert ((steps > 3.0) & (steps < 4.5)).all()  # twice the energy, and a lower rate
    assert control.shares(Cell(name="hall", bandwidth_mhz=5)) == (1, 1)  # and the first grant of a slot always fits


def test_presets_set_what_is_not_given():
    """What a description says holds over the preset, and the default preset over nothing that was there before."""
    plain, oai = Cell(name="hall"), Cell(name="hall", radio_parameters="oai")
    assert plain == Cell(name="hall", radio_parameters="srsran")
    assert (plain.grant, plain.sr_period_ms, plain.k2_slots, plain.p0_dbm) == ("sr", 20, 4, -76)
    assert (oai.grant, oai.k2_slots, oai.p0_dbm) == ("configured", 6, plain.p0_dbm)
    assert Cell(name="hall", radio_parameters="oai", grant="sr", k2_slots=3).model_dump() == {
        **oai.model_dump(), "grant": "sr", "k2_slots": 3,
    }  # fmt: skip
    assert Cell.model_validate(oai.model_dump()) == oai
    with pytest.raises(ValidationError, match="'ideal', 'srsran' or 'oai'"):
        Cell(name="hall", radio_parameters="amarisoft")


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_an_ideal_cell_is_sooner_than_a_stack(network, flat, direction):
    """One packet each of ten devices: no preset is sooner than the bound, and the one that asks first is latest."""
    seconds = {}
    for name in PRESETS:
        mac = Mac(network(radio_parameters=name), [0] * 10, seed=1, trace=flat(60))
        for ue in range(10):
            mac.offer(ue, direction, 900, 0.0137 * ue)
        done = mac.run(1.0)
        seconds[name] = (done["delivered_s"] - done["arrived_s"]).mean()
    assert seconds["ideal"] <= seconds["oai"] <= seconds["srsran"]
