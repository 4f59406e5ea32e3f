"""What an uplink asks and may: levels of buffer status, room for scheduling requests, power."""

from math import ceil, log10

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airserve.network import frame, link, uplink
from airserve.network.cell import Cell
from airserve.network.mac import UP, Mac, MacError


def test_levels_of_the_short_report_are_a_geometric_series():
    """TS 38.321 Table 6.1.3.1-1 is 10 to 150,000 bytes in 29 equal ratios, rounded up."""
    short = uplink.levels("short")
    assert short[:31].tolist() == [0] + [ceil(10 * 15_000 ** (k / 29) - 1e-9) for k in range(30)]


def test_levels_of_the_long_report():
    """Table 6.1.3.1-2 ends at 81,338,368 bytes; its 253 ratios are equal but for whole bytes at the start."""
    long = uplink.levels("long")
    assert len(long) == 256 - 1  # 255 is reserved
    assert long[[1, 253, 254 - 1]].tolist() == [10, 81_338_368, 81_338_368]
    assert (np.diff(long) > 0).all()
    big = long[100:254]
    assert big[1:] / big[:-1] == pytest.approx((81_338_368 / 10) ** (1 / 253), rel=2e-3)


@given(nbytes=st.integers(0, 300_000), format=st.sampled_from(["short", "long", "exact"]))
def test_a_report_names_no_less_than_there_is(nbytes, format):
    """And at most one ratio of the table more: 1.39, or 1.065 and a byte."""
    levels = uplink.levels(format)
    named = uplink.reported.py_func(levels, nbytes)
    assert nbytes <= named
    if nbytes <= 150_000:
        assert named <= max(10, {"short": 1.394, "long": 1.066, "exact": 1}[format] * nbytes + 1)


def fewest_prbs(nbytes):
    """Of 144 elements at the top MCS on one layer, with the 10 bytes of a block's own headers."""
    top = len(link.QM) - 1
    return next(n for n in range(1, 274) if link.tbs_bits(144 * n, link.QM[top], link.RATE[top], 1) >= 8 * nbytes + 80)


@pytest.mark.parametrize("format", ["short", "long", "exact"])
def test_the_second_grant_is_for_the_level_reported(network, flat, format):
    """900 bytes and 50 of headers: 512 are granted for the request, then what the report in that block names."""
    mac = Mac(network(buffer_status=format, reference_signals=False), [0], seed=1, trace=flat(60))
    mac.offer(0, UP, 900, 0.1)
    assert len(mac.run(0.2)) == 1
    top = len(link.QM) - 1
    first = fewest_prbs(512)
    rest = 950 - (link.tbs_bits(144 * first, link.QM[top], link.RATE[top], 1) // 8 - 10)
    levels = uplink.levels(format)
    second = fewest_prbs(min(levels[levels >= rest], default=rest))
    assert mac.usage().prbs_used[0, UP] == first + second
    assert mac.usage().requests == 1


PATTERNS = st.text("DSU", min_size=2, max_size=8).filter(lambda text: "D" in text and "U" in text)


@given(pattern=PATTERNS, times=st.integers(2, 8), sr_ms=st.sampled_from([1, 2.5, 7, 20]), carriers=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pattern_repeated_is_the_same_pattern(network, flat, pattern, times, sr_ms, carriers):
    """Record by record, whether the cell or one of its carriers has it."""
    runs = []
    for tdd in (pattern, times * pattern):
        own = {"carriers": [{"tdd": tdd}]} if carriers else {"tdd": tdd}
        mac = Mac(network(sr_period_ms=sr_ms, **own), [0] * 6, seed=3, trace=flat(20, 9))
        rng = np.random.default_rng(4)
        sizes = rng.integers(1, 20_000, 60)
        mac.offer_all(rng.integers(0, 6, 60), rng.integers(0, 2, 60), sizes, rng.uniform(0, 0.3, 60))
        runs.append(mac.run(1.0))
    assert len(runs[0]) == 60
    assert (runs[0] == runs[1]).all()


def test_more_devices_than_the_pucch_can_hear(network, flat):
    cell = {"sr_resources": 4, "tdd": "DDDSU"}  # 8 uplink slots in 20 ms
    Mac(network(**cell), [0] * 32, seed=1, trace=flat(20))
    with pytest.raises(MacError, match=r"of 32 devices in 20 ms \(8 uplink slots of 4\) and 70 are there") as error:
        Mac(network(**cell), [0] * 70, seed=1, trace=flat(20))
    assert "raise sr_period_ms to 60, or choose grant: configured" in str(error.value)
    Mac(network(sr_period_ms=60, **cell), [0] * 70, seed=1, trace=flat(20))
    Mac(network(grant="configured", **cell), [0] * 70, seed=1, trace=flat(20))


def test_a_grant_may_be_the_cells_own(network, flat):
    mac = Mac(network(grant="configured"), [0], seed=1, trace=flat(60))
    mac.offer(0, UP, 200, 0.1)
    mac.run(0.2)
    assert mac.usage().requests == 0


def test_open_loop_power_is_that_of_the_clause(flat):
    """TS 38.213 7.1.1: P0 + 10 lg(2^mu M) + alpha PL, up to 23 dBm; a path 10 dB worse gets alpha of them."""
    cell = Cell(name="hall", p0_dbm=-90, alpha=0.8)
    near, far = uplink.open_loop_db(cell, flat(60, 50))
    assert far - near == pytest.approx(8.0)
    noise_dbm = -174 + 5 + 10 * log10(12 * 30e3)
    for alpha, snr_db in ((1.0, 60), (1.0, 30)):  # all of it: the base station hears all alike
        whole = Cell(name="hall", p0_dbm=-90, alpha=alpha)
        heard_db = snr_db + uplink.open_loop_db(whole, flat(snr_db))[0] - 10 * log10(whole.gnb_ports)
        assert heard_db == pytest.approx(-90 + 10 * log10(2) - noise_dbm)


def test_power_control_lowers_the_snr_that_arrives(network, flat):
    """A near device held to a low P0 carries what a far one at full power does, and asks for as much."""
    low = network(p0_dbm=-110, buffer_status="exact")
    snr_db = 60 + float(uplink.open_loop_db(low.cell, flat(60))[0])
    carried = []
    for net, snr in ((low, 60), (network(p0_dbm=24, buffer_status="exact"), snr_db)):
        mac = Mac(net, [0], seed=1, trace=flat(snr), grant="configured")
        for _ in range(3000):
            mac.offer(0, UP, 14_000, 0.0)
        mac.run(2.0)
        carried.append(mac.usage().mbps[0, UP])
    assert 15 < snr_db < 25
    assert carried[0] == pytest.approx(carried[1], rel=0.01)


def test_a_device_at_the_edge_cannot_fill_the_carrier(network, flat):
    """Where the power of 23 dBm over 273 PRBs is below the lowest MCS, grants end where it is reached."""
    snr_db = -18
    most = 273 * 10 ** ((snr_db - link.THRESHOLD_DB[0]) / 10)
    assert most < 40
    mac = Mac(network(), [0], seed=1, trace=flat(snr_db), grant="configured")
    mac.offer(0, UP, 50_000, 0.0)
    mac.run(2.0)
    used = mac.usage()
    granted = used.prbs_used[0, UP] / (used.blocks + used.resent)
    assert most / 10 <= granted <= most * 2  # the outer loop adds at most 3 dB
    assert frame.pattern(network().cell)["elements"][9, UP] == 144
