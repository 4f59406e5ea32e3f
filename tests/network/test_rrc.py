"""Devices that are not there at once: timing by hand, collisions and sleep against their closed forms."""

import numpy as np
import pytest
from pydantic import ValidationError

from airserve.network import rrc
from airserve.network.buffers import N
from airserve.network.cell import Cell
from airserve.network.mac import DOWN, UP, Mac

SLOT_MS = 0.5
PRACH = 20  # slots, of which the first uplink slot of DDDSU is the occasion


def silent(network, flat, **cell):
    """A cell whose devices have long been released."""
    return network(**{"always_on": False, "inactivity_ms": 100, "reference_signals": False, **cell})


def occasion(slot):
    """First PRACH after a slot."""
    slot += 1
    while slot % PRACH != 4:
        slot += 1
    return slot


@pytest.mark.parametrize(("random_access", "resolved_ms"), [("4-step", 9.0), ("2-step", 4.0)])
@pytest.mark.parametrize(("inactive_ms", "preparing_ms"), [(0, 50.0), (10_000, 10.0)])
def test_the_first_packet_after_a_silence(network, flat, random_access, resolved_ms, inactive_ms, preparing_ms):
    """Uplink: PRACH, contention resolved, connection resumed or set up, then the next uplink slot: by hand."""
    net = silent(network, flat, random_access=random_access, inactive_ms=inactive_ms)
    mac = Mac(net, [0], seed=1, trace=flat(60), processing=False)
    at_s = 1.0 + np.arange(40) * 0.50013
    for t in at_s:
        mac.offer(0, UP, 200, t)
    done = mac.run(30.0)
    for t, one in zip(at_s, done, strict=True):
        slot = occasion(int(np.ceil(t * 2000))) + round((resolved_ms + preparing_ms) / SLOT_MS)
        while slot % 5 != 4:
            slot += 1
        assert one["delivered_s"] == pytest.approx((slot + 1) * SLOT_MS / 1e3)
    assert mac.usage().requests == 0  # the access carries the report
    assert mac._state.n[N.preambles] == 40


def test_a_device_that_speaks_in_time_stays(network, flat):
    """Traffic before the timer ends, in either direction, keeps the connection; the same as if always on."""
    latency = []
    for always_on in (False, True):
        mac = Mac(silent(network, flat, always_on=always_on), [0], seed=1, trace=flat(60))
        for i in range(50):
            mac.offer(0, i % 2, 200, 0.01 + i * 0.09)
        done = mac.run(10.0)
        assert mac._state.n[N.preambles] == 0
        latency.append(done["delivered_s"] - done["arrived_s"])
    assert (latency[0] == latency[1]).all()


def test_the_downlink_waits_for_the_paging_occasion(network, flat):
    """On average half a paging cycle more than the uplink: arrivals at every instant of a cycle."""
    n, cycle_s = 200, 0.32
    mac = Mac(silent(network, flat, paging_cycle_ms=320), [0], seed=3, trace=flat(60), processing=False)
    phase = np.arange(n) * 0.6180339887498949 % 1
    for t in 1 + (4 * np.arange(n) + phase) * cycle_s:
        mac.offer(0, DOWN, 200, t)
    done = mac.run(400.0)
    ms = (done["delivered_s"] - done["arrived_s"]) * 1e3
    least = 9 + 50 + 0.5
    assert ms.min() > least
    assert ms.max() < least + 320 + 10 + 3
    assert ms.mean() == pytest.approx(least + 160 + 5 + 1.2, abs=4)


def test_preambles_collide_as_often_as_birthdays(network, flat):
    """n devices at one occasion: each shares its preamble with probability 1 - (1 - 1/54)^(n - 1); and tries again."""
    n, collided, sent = 40, 0, 0
    for seed in range(40):
        mac = Mac(silent(network, flat), [0] * n, seed=seed, trace=flat(60))
        for ue in range(n):
            mac.offer(ue, UP, 100, 1.0)
        mac.run(1.0 + 0.030)  # one occasion, resolved, and no second
        assert mac._state.n[N.preambles] == n
        collided, sent = collided + mac._state.n[N.collided], sent + n
    assert collided / sent == pytest.approx(1 - (1 - 1 / rrc.PREAMBLES) ** (n - 1), abs=0.03)
    assert len(mac.run(10.0)) == n
    assert mac._state.n[N.preambles] > n


def test_a_sleeping_device_is_reached_in_its_next_on_duration(network, flat):
    """Cycle c, on-duration o: the wait is 0 with o / c, else even up to c - o; mean (c - o)^2 / 2c."""
    cycle_ms, on_ms, n = 160.0, 20.0, 400
    means = []
    for drx in ({"drx_cycle_ms": cycle_ms, "drx_on_ms": on_ms, "drx_inactivity_ms": 30}, {}):
        mac = Mac(network(reference_signals=False, **drx), [0], seed=2, trace=flat(60))
        phase = np.arange(n) * 0.6180339887498949 % 1
        for t in 1 + (4 * np.arange(n) + phase) * cycle_ms / 1e3:
            mac.offer(0, DOWN, 200, t)
        done = mac.run(400.0)
        means.append(1e3 * np.mean(done["delivered_s"] - done["arrived_s"]))
    assert means[0] - means[1] == pytest.approx((cycle_ms - on_ms) ** 2 / (2 * cycle_ms), rel=0.03)


def test_an_uplink_wakes_its_device(network, flat):
    """What waits for an on-duration comes down as soon as the device sends for its own sake."""
    mac = Mac(network(drx_cycle_ms=2000, drx_on_ms=10, drx_inactivity_ms=10), [0], seed=2, trace=flat(60))
    offset_s = int(mac._state.ue["drx_offset"][0]) * SLOT_MS / 1e3
    mac.offer(0, DOWN, 200, offset_s + 2.1)
    mac.offer(0, UP, 200, offset_s + 2.2)
    done = mac.run(offset_s + 3.9)
    assert len(done) == 2
    down = done[done["direction"] == DOWN][0]
    assert down["delivered_s"] < offset_s + 2.21


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"drx_cycle_ms": 10, "drx_on_ms": 10}, "fills the drx_cycle_ms of 10"),
        ({"always_on": False, "inactivity_ms": 100, "drx_cycle_ms": 160}, "no shorter than inactivity_ms 100"),
    ],
)
def test_sleep_that_makes_no_sense(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Cell(name="hall", **wrong)
