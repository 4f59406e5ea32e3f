"""Relative power against sequences of slots worked out by hand, closed forms and a count slot by slot."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airserve.network import energy, rrc, twin
from airserve.network.buffers import UE
from airserve.network.cell import Cell
from airserve.network.equipment import parse
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.radio import Trace
from airserve.network.sleeping import rested
from airserve.network.traffic import Flow

FDD = {"duplex": "fdd", "reference_signals": False}


sizes = st.integers(1, 200_000)


@pytest.fixture
def roomy():
    """A trace that knows devices with fewer antennas, on a channel of 60 dB."""
    snr = np.full((1, 1, 1), 60, np.float32)
    return Trace("inf-dh", 0.01, snr, snr, np.zeros((1, 3), np.float32), {}, **dict.fromkeys(FEWER, snr))


FEWER = ("snr_down_1_db", "snr_down_2_db", "snr_up_1_db")


def power(mac, cell, slots, kind="full"):
    """Mean relative power of all devices together after so many slots, and the parts of the time in each state."""
    s = mac._state
    done = energy.book(mac._config.access, s.ue, slots, s.n[:1], s.prbs_used[:, DOWN])
    found, states = energy.devices(cell, [parse(kind).draw(cell)] * len(s.ue), done)
    return found.mean(), {name: part.mean() for name, part in states.items()}


@pytest.fixture
def lone(network, flat):
    """A cell with devices on a channel of some dB that send without asking."""

    def make(snr_db=60, devices=1, kind="full", **cell):
        net = network(**cell)
        mac = Mac(net, [0] * devices, seed=1, trace=flat(snr_db), grant="configured", processing=False)
        return mac, net.cell

    return make


@pytest.mark.parametrize(
    ("cell", "expected"),
    [({"duplex": "fdd"}, 100), ({}, 0.8 * 100 + 0.2 * 45), ({"duplex": "fdd", "ue_antennas": 2}, 70)],
)
def test_a_device_that_is_always_on_listens(lone, cell, expected):
    mac, described = lone(**cell)
    mac.run(10.0)
    assert power(mac, described, 20_000)[0] == pytest.approx(expected)


def test_one_packet_each_way_by_hand(lone):
    """FDD: a PDSCH in one slot, its PUCCH four slots later, a PUSCH in a third; 23 dBm on all PRBs, less on one."""
    mac, cell = lone(**FDD)
    mac.offer(0, DOWN, 200, 0.01)
    mac.offer(0, UP, 200, 0.02)
    mac.run(0.05)
    strength = min(10 ** (mac._state.flow["open_db"][1] / 10) / 273, 1)
    sending = 250 + max(strength * 10**2.3 - 1, 0) / (10**2.3 - 1) * 450
    expected = 99 * 100 + 300 + (0.3 * 250 - 45) + (sending - 45)
    found, states = power(mac, cell, 100)
    assert found * 100 == pytest.approx(expected)
    assert (states["pdsch"], states["pucch"], states["pusch"]) == pytest.approx((0.01, 0.01, 0.01))


def test_acknowledgements_go_with_data(lone):
    """In every slot data down and up: no PUCCH but for what is acknowledged after the last."""
    mac, cell = lone(**FDD)
    for direction in (DOWN, UP):
        mac.offer(0, direction, 100_000_000, 0.0)
    mac.run(0.2)
    states = power(mac, cell, 400)[1]
    assert states["pdsch"] == states["pusch"] == 1
    assert states["pucch"] <= 4 / 400


@pytest.mark.parametrize(("direction", "expected"), [(DOWN, 0.8 * 300 + 0.2 * 75), (UP, 0.8 * 100 + 0.2 * 700)])
def test_a_full_buffer_is_active_all_the_time(lone, direction, expected):
    """DDDSU. Up: a channel so poor that power control asks for all of 23 dBm."""
    mac, cell = lone(snr_db=60 if direction == DOWN else -5, reference_signals=False)
    mac.offer(0, direction, 500_000_000, 0.0)
    mac.run(5.0)
    assert power(mac, cell, 10_000)[0] == pytest.approx(expected, rel=0.005)


@given(up=st.lists(sizes, max_size=4), down=st.lists(sizes, max_size=4), asleep=st.booleans())
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_half_duplex_device_does_one_thing_in_a_slot(network, roomy, up, down, asleep):
    """It sends data, hears data, listens or sleeps: the parts of the time are 1 together, PUCCH being of one symbol."""
    drx = {"drx_cycle_ms": 40, "drx_on_ms": 4, "drx_inactivity_ms": 5} if asleep else {}
    kind, net = "redcap,duplex=half", network(**FDD, **drx)
    mac = Mac(net, [0], seed=1, trace=roomy, grant="configured", processing=False, kinds=[kind])
    for direction, records in ((UP, up), (DOWN, down)):
        for nbytes in records:
            mac.offer(0, direction, nbytes, 0.01)
    mac.run(0.5)
    _, states = power(mac, net.cell, 1000, kind)
    doing = {name: part for name, part in states.items() if name != "pucch"}
    assert min(doing.values()) >= 0
    assert sum(doing.values()) == pytest.approx(1)
    assert states["pusch"] > 0 or not up


def test_half_duplex_saves_listening_while_it_sends(network, roomy):
    """Full buffer up: each slot draws for the PUSCH alone, of a channel so good that it is at 0 dBm; else PDCCH too."""
    found = {}
    for duplex in ("half", "full"):
        kind, net = f"redcap,duplex={duplex}", network(p0_dbm=-202, **FDD)
        mac = Mac(net, [0], seed=1, trace=roomy, grant="configured", processing=False, kinds=[kind])
        mac.offer(0, UP, 500_000_000, 0.0)
        mac.run(0.5)
        found[duplex], states = power(mac, net.cell, 1000, kind)
        assert states["pusch"] == 1
    assert found == pytest.approx({"half": 250, "full": 250 + 50 - 45}, abs=0.01)


@pytest.mark.parametrize(
    ("cycle_ms", "on_ms", "expected"),
    [
        (160, 10, (10 * 100 + 150 * 1 + 450) / 160),  # deep
        (20, 10, (10 * 100 + 10 * 20 + 100) / 20),  # light
        (8, 4, (4 * 100 + 4 * 45) / 8),  # micro
    ],
)
def test_drx_by_its_closed_form(lone, cycle_ms, on_ms, expected):
    mac, cell = lone(devices=4, drx_cycle_ms=cycle_ms, drx_on_ms=on_ms, drx_inactivity_ms=1, **FDD)
    mac.run(160.0)
    assert power(mac, cell, 320_000)[0] == pytest.approx(expected, rel=0.005)


def test_an_idle_device_wakes_for_its_paging_occasions(lone):
    mac, cell = lone(devices=4, always_on=False, inactivity_ms=10, **FDD)
    mac.run(1280.0)
    expected = (0.5 * 100 + 1279.5 * 1 + 450) / 1280
    assert power(mac, cell, 2_560_000)[0] == pytest.approx(expected, rel=0.01)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 300), st.integers(0, 900), st.integers(1, 60), st.integers(2, 90), st.data(), st.integers(61, 400)
)
def test_sleep_equals_a_count_slot_by_slot(active_at, later, inactivity, cycle, data, released):
    """Each slot of a quiet device is asleep or not by the rules; stretches are deep, light or micro by their length."""
    on, offset = data.draw(st.integers(1, cycle - 1)), data.draw(st.integers(0, cycle - 1))
    paging, always_on = data.draw(st.integers(40, 200)), data.draw(st.booleans())
    access = rrc.access(Cell(name="hall"))._replace(
        always_on=always_on, inactivity=released, paging=paging, drx_inactivity=inactivity, drx_cycle=cycle, drx_on=on,
        soonest=min(inactivity, released), deep=40, light=12,
    )  # fmt: skip
    ue = np.zeros(1, UE)
    ue["active_at"], ue["drx_offset"], ue["paging_offset"] = active_at, offset, offset
    until = active_at + later
    rested(access, ue, until)
    expected, length = np.zeros(5, np.int64), 0
    for slot in range(active_at, until + 1):
        quiet_for = slot - active_at
        idle = not always_on and quiet_for > released
        hears = (slot - offset) % paging == 0 if idle else quiet_for <= inactivity or (slot - offset) % cycle < on
        border = not always_on and quiet_for == released + 1  # released: a sleep of its own
        if length and (hears or border or slot == until):
            kind = 0 if length >= 40 else 1 if length >= 12 else 2
            expected[kind] += length
            if kind < 2:
                expected[3 + kind] += 1
            length = 0
        length += slot < until and not hears
    assert ue["rest"][0].tolist() == expected.tolist()


def test_a_packet_ends_a_sleep(lone):
    """Asleep from 50 ms of quiet until a packet up at 1 s; then awake for 50 ms again."""
    mac, cell = lone(drx_cycle_ms=10_000, drx_on_ms=1, drx_inactivity_ms=50, **FDD)
    mac._state.ue["drx_offset"] = 19_000
    mac.offer(0, UP, 200, 1.0)
    mac.run(2.0)
    _, states = power(mac, cell, 4000)
    assert states["deep_sleep"] == pytest.approx((1000 - 50 + 1000 - 50) / 2000, abs=0.002)


def test_redcap_draws_less(network):
    """Listening draws 50 in place of 100: 20 MHz takes 60 % off, one antenna half of the rest, to the least of 50."""
    rare = [Flow(ue, "all", 2, 1e-3, "poisson", site="mast", bytes_up=[9], bytes_down=[9], ue=ue) for ue in KINDS]
    net = network(duplex="fdd")
    seen = twin.run(net, rare, until_s=5, seed=1)
    assert [seen.power[ue].mean() for ue in KINDS] == pytest.approx([100, 50, 50], rel=0.01)
    draws = [parse(ue).draw(net.cell).pdsch for ue in KINDS]
    assert draws == pytest.approx([300, 0.4 * 0.49 * 300, 0.4 * 0.7 * 300])


KINDS = ["full", "redcap", "redcap,antennas=2"]


def test_a_base_station_draws_by_its_load(network):
    """DDDSU, no signals of its own: 3.71 of 5 slots' worth of symbols down by load, one slot up."""
    net = network(reference_signals=False)
    busy = Flow("busy", "all", 10, 2000.0, site="mast", bytes_up=[1], bytes_down=[60_000])
    none = Flow("none", "all", 1, 1e-6, "poisson", site="mast", bytes_up=[1], bytes_down=[1])
    idle = 55 + 0.2 * (110 - 55)
    symbols = (3 * 14 + 10) / 70
    full, silent = (
        twin.run(net, [one], until_s=1, seed=1, warm_s=0.5, drain_s=0.1).stations[0] for one in (busy, none)
    )
    assert silent == {"name": "hall", "power": pytest.approx(idle), "sends": 0.0, "listens": 0.2}
    assert full["power"] == pytest.approx(idle + symbols * (280 - 55), rel=0.02)
    assert full["sends"] == pytest.approx(symbols, rel=0.01)
    half = energy.station(net.cell, sent=400, prbs_down=400 * 273 / 2, slots=1000)
    assert half["power"] == pytest.approx(idle + 0.4 * symbols / 0.8 * 225 * (0.4 + 0.6 / 2), rel=1e-3)


def test_several_base_stations(network):
    ask = Flow("ask", "all", 6, 50.0, site="mast", bytes_up=[200], bytes_down=[20_000])
    seen = twin.run(network(trps=2), [ask], until_s=2, seed=1)
    assert [one["name"] for one in seen.stations] == list(seen.many.names)
    assert all(66 < one["power"] < 246 for one in seen.stations)
    assert seen.power["ask"].shape == (6,)
    assert ((seen.power["ask"] > 89) & (seen.power["ask"] < 255)).all()
