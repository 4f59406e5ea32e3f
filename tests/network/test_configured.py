"""Configured grants of services: when they come by enumeration, what they carry, and what they cost others."""

import numpy as np
import pytest

from airserve.network import link
from airserve.network.channels import Channel, ChannelError
from airserve.network.mac import DOWN, UP, Mac, MacError

SLOT_S = 0.0005


def granted(**keys):
    return Channel(configured_grant=keys)


@pytest.mark.parametrize(("tdd", "period_ms", "offset_ms"), [("DDDSU", 10, None), ("DDDSU", 2.5, None), ("DSUU", 8, 5)])
def test_latency_is_that_of_enumeration(network, flat, tdd, period_ms, offset_ms):
    """A message waits for its occasion, one slot in every period, and goes in it: no request, whenever it comes."""
    mac = Mac(
        network(tdd=tdd), [0], seed=1, trace=flat(60),
        channels=[granted(period_ms=period_ms, bytes=300, offset_ms=offset_ms)],
    )  # fmt: skip
    period = round(period_ms / 0.5)
    first = next(slot for slot in range(period) if slot >= 2 * (offset_ms or 0) and tdd[slot % len(tdd)] == "U")
    at = 0.1 + 0.05 * np.arange(300) + np.arange(300) * 0.6180339887498949 % 1 * period * SLOT_S
    for t in at:
        mac.offer(0, UP, 300, t)
    done = mac.run(20.0)
    symbol_s = SLOT_S / 14
    slot = np.ceil((at + 6 * symbol_s) / SLOT_S - 1e-9)  # prepared N2/2 symbols later
    slot += (first - slot) % period
    assert done["delivered_s"] == pytest.approx((slot + 1) * SLOT_S + 5 * symbol_s, abs=1e-9)
    assert mac.usage().requests == 0
    assert mac.usage().blocks == 300


def test_what_does_not_fit_is_asked_for_in_the_block(network, flat):
    """3,000 bytes with room for 300: the report in the first block brings a dynamic grant, and no request is sent."""
    mac = Mac(network(), [0], seed=1, trace=flat(60), channels=[granted(period_ms=100, bytes=300)])
    mac.offer(0, UP, 3000, 0.1)
    done = mac.run(0.2)
    assert mac.usage().requests == 0
    assert mac.usage().blocks == 2
    assert float(done["delivered_s"][0]) < 0.11


def test_the_grant_is_the_fewest_prbs_at_a_rate_that_holds(network, flat):
    """350 bytes on the radio and 10 of the block, in an uplink slot with a PRACH, at the device's poorest SNR."""
    mac = Mac(network(), [0], seed=1, trace=flat(60), channels=[granted(period_ms=10, bytes=300)])
    one = mac._state.standing[0]
    elements = int(min(mac._state.pattern["elements"][one["offset"] :: one["period"], UP]))
    bits = link.tbs_bits(elements * int(one["prbs"]), link.QM[one["mcs"]], link.RATE[one["mcs"]], 1)
    assert bits >= 8 * 360
    assert link.tbs_bits(elements * (int(one["prbs"]) - 1), link.QM[one["mcs"]], link.RATE[one["mcs"]], 1) < 8 * 360


@pytest.mark.parametrize("kind", [0, 1])
def test_what_is_booked_is_lent_to_nobody(network, flat, kind):
    """Ten silent devices with grants, and one that floods: it has all PRBs but the booked ones."""
    slices = [{"name": "a"}, {"name": "b"}]
    channels = [granted(period_ms=5, bytes=1000)] * 10 + [Channel()]
    mac = Mac(network(slices, allocation=kind), [0] * 10 + [1], seed=1, trace=flat(*[25] * 11), channels=channels)
    mac.offer_all(10, UP, 30_000, np.zeros(2000))
    mac.run(1.0)
    booked = mac._state.booked[4::5].sum(axis=1)
    assert (booked > 0).all()
    floor = 273 // 16 * 16 if kind == 0 else 273
    used = mac.usage().share_used[1, UP]
    assert (floor - 16 * (kind == 0) - booked.mean()) / 273 - 0.03 <= used <= (273 - booked.mean()) / 273
    assert mac.usage().share_used[0, UP] == 0


def test_an_alarm_with_a_grant_of_its_own_beside_a_video(network, flat):
    """A device that floods one slice and has a grant in the other: the alarm waits for an occasion and nothing else."""
    mac = Mac(
        network([{"name": "a"}, {"name": "b"}]), [0, 1], seed=1, trace=flat(25), device_of=[0, 0],
        channels=[Channel(priority=1, configured_grant={"period_ms": 5, "bytes": 200}), Channel(priority=9)],
    )  # fmt: skip
    mac.offer_all(1, UP, 30_000, np.zeros(3000))
    alarms = [mac.offer(0, UP, 200, 0.1 + 0.0413 * k) for k in range(20)]
    done = mac.run(1.0)
    mine = done[np.isin(done["id"], alarms)]
    assert len(mine) == 20
    assert ((mine["granted_s"] - mine["arrived_s"]) < 0.0055).mean() > 0.7  # others by the device's dynamic grants
    assert np.median(mine["delivered_s"] - mine["arrived_s"]) < 0.008


def test_losses_and_grants_of_its_own_keep_every_byte(network, flat):
    """At an SNR where blocks fail, in both directions and with messages of all sizes."""
    rng = np.random.default_rng(5)
    channels = [granted(period_ms=5, bytes=200), Channel(priority=3), granted(period_ms=20, bytes=500, offset_ms=3)]
    mac = Mac(network(), [0] * 3, seed=5, trace=flat(-4, 6), device_of=[0, 0, 1], channels=channels)
    sent = {}
    for t in np.sort(rng.uniform(0, 1, 200)):
        one = int(rng.integers(3)), int(rng.integers(2)), int(rng.integers(1, 3000))
        sent[mac.offer(*one, t)] = one
    done = mac.run(100.0)
    assert mac.idle
    assert {int(one["id"]): (one["ue"], one["direction"], one["nbytes"]) for one in done} == sent
    assert len(done) == 200
    assert (mac._state.flow["processes"] == 0).all()
    assert mac.usage().failed > 0
    assert mac.usage().nbytes.sum() == sum(size for _, _, size in sent.values())
    assert {DOWN, UP} == {int(way) for way in done["direction"]}


@pytest.mark.parametrize(
    ("channels", "cell", "match"),
    [
        ([granted(period_ms=4, bytes=9)], {}, r"every 4 ms does not meet its uplink slots, which repeat every 2\.5 ms"),
        ([granted(period_ms=1000, bytes=9)], {}, "up to 640 ms"),
        ([granted(period_ms=5, bytes=10**6)], {}, "of 1000000 bytes does not fit its 273 PRBs at 60 dB"),
        ([granted(period_ms=5, bytes=10_000, offset_ms=0)] * 9, {}, "PRBs in one slot and it has 273"),
        ([granted(period_ms=5, bytes=9)], {"grant": "configured"}, "has grant: configured"),
        ([granted(period_ms=p, bytes=9) for p in (637.5, 635, 632.5)], {}, r"meet only every .* s; give them periods"),
    ],
)
def test_grants_that_cannot_be(network, flat, channels, cell, match):
    with pytest.raises((ChannelError, MacError), match=match):
        Mac(network(**cell), [0] * len(channels), seed=1, trace=flat(60), channels=channels)
