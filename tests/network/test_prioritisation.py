"""Devices with several logical channels: TS 38.321 5.4.3.1 and 5.4.5 against what the clauses say, written out here."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airserve.network import link, twin
from airserve.network.buffers import N
from airserve.network.channels import Channel, ChannelError
from airserve.network.jit import njit
from airserve.network.mac import DOWN, UP, Mac, MacError
from airserve.network.prioritisation import allot, fill_buckets, rows
from airserve.network.traffic import Flow, TrafficError

SLOT_S = 0.0005
TWO = [{"name": "a"}, {"name": "b"}]


@njit
def fill(s, first, room):
    """One grant of a device: what it allots to each channel, int64; the bytes count as sent."""
    fill_buckets(s, first)
    allot(s, first, room, False)
    found = np.zeros(s.channel.size, np.int64)
    for f in range(found.size):
        found[f] = s.channel[f].allotted
    rows(s, first, False, 0.0)
    return found


def by_the_clause(channels, room, slots):
    """TS 38.321 5.4.3.1.3, step by step, for channels of different priorities; returns the bytes of each.

    A channel is a dict: priority, pbr (bytes a slot), most (bytes), bucket, packets (bytes each). Every channel after
    the first to have bytes needs 8 more for its headers.
    """
    took = [0] * len(channels)

    def put(i):
        """One packet, whole where it fits, else as much of it as there is room for; whether anything went."""
        nonlocal room
        packets = channels[i]["packets"]
        cost = 8 if not took[i] and any(took) else 0
        n = min(packets[0], room - cost) if packets else 0
        if n <= 0:
            return False
        room -= cost + n
        took[i] += n
        packets[0] -= n
        if packets[0] == 0:
            packets.pop(0)
        return True

    order = sorted(range(len(channels)), key=lambda i: channels[i]["priority"])
    for one in channels:
        one["bucket"] = min(one["bucket"] + one["pbr"] * slots, one["most"]) if one["pbr"] < np.inf else np.inf
    for i in order:
        while channels[i]["bucket"] - took[i] > 0 and put(i):
            pass
    for i in order:
        channels[i]["bucket"] -= took[i]
    for i in order:
        while put(i):
            pass
    return took


@st.composite
def grants(draw):
    """Channels of different priorities with records, and rooms with the slots between them."""
    n = draw(st.integers(2, 4))
    priorities = draw(st.permutations(range(1, 17)))[:n]
    rates = [draw(st.sampled_from([0, 8, 64, 1024, 65536, "infinity"])) for _ in range(n)]
    buckets = [draw(st.sampled_from([5, 50, 1000])) for _ in range(n)]
    channels = [Channel(priority=priorities[k], prioritised_kbytes_s=rates[k], bucket_ms=buckets[k]) for k in range(n)]
    records = [draw(st.lists(st.integers(1, 6000), max_size=4)) for _ in range(n)]
    rooms = draw(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 200)), min_size=1, max_size=8))
    return channels, records, rooms


def waiting(network, flat, channels, records):
    """A device with channels in one slice and records in each, none sent yet: slot 1 of DDDSU."""
    n = len(channels)
    mac = Mac(
        network(), [0] * n, seed=1, trace=flat(60), grant="configured", processing=False,
        device_of=[0] * n, channels=channels,
    )  # fmt: skip
    for k, sizes in enumerate(records):
        for size in sizes:
            mac.offer(k, UP, size, 0.0)
    mac.run(2 * SLOT_S)
    return mac


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=grants())
def test_grants_are_filled_as_the_clause_says(network, flat, case):
    """Bucket, prioritised rate, strict priority, and no packet cut that fits, over grants one after the other."""
    channels, records, rooms = case
    n = len(channels)
    mac = waiting(network, flat, channels, records)
    mine = []
    for one, sizes in zip(channels, records, strict=True):
        rate = one.prioritised_kbytes_s
        pbr, most = (np.inf, np.inf) if rate == "infinity" else (rate * 1000 * SLOT_S, rate * one.bucket_ms)
        packets = [min(1400, size - at) + 50 for size in sizes for at in range(0, size, 1400)]
        mine.append({"priority": one.priority, "pbr": pbr, "most": most, "bucket": 0.0, "packets": packets})
    state, before = mac._state, 0
    for room, slots in rooms:
        state.n[N.slot] += slots
        expected = by_the_clause(mine, room, int(state.n[N.slot]) - before)
        before = int(state.n[N.slot])
        assert fill(state, n, room)[n:].tolist() == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9000), min_size=2, max_size=4), room=st.integers(1, 20_000))
def test_channels_of_one_priority_are_served_equally(network, flat, sizes, room):
    """Without a prioritised rate: the least served of those left wanting has no less than any other, less rounding."""
    n = len(sizes)
    channels = [Channel(priority=5, prioritised_kbytes_s=0)] * n
    mac = waiting(network, flat, channels, [[size] for size in sizes])
    wants = mac._state.flow["enqueued"][n:].copy()
    got = fill(mac._state, n, room)[n:]
    assert (got <= wants).all()
    headers = 8 * max((got > 0).sum() - 1, 0)
    assert got.sum() + headers <= room
    short = got < wants
    if short.any():
        assert room - got.sum() - headers <= 8
        assert got.max() - got[short].min() <= 8 * n + n


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=30),
    snr_db=st.integers(-10, 12),
    grant=st.sampled_from(["sr", "configured"]),
    cell=st.sampled_from(
        [
            {},
            {"buffer_status": "exact"},
            {"allocation": 0},
            {"always_on": False, "inactivity_ms": 25},
            {"drx_cycle_ms": 40, "drx_inactivity_ms": 5},
        ]
    ),
    ranks=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    seed=st.integers(0, 2**32),
)
@example(  # blocks to be sent again that wait for whole groups of PRBs of two slices
    sizes=[18397, 200, 6, 8],
    snr_db=-8,
    grant="configured",
    cell={"allocation": 0},
    ranks=[2, 4, 2, 1, 1],
    seed=704039581,
)
@example(  # two such blocks, each with a part of what the other lacks
    sizes=[
        2399,
        3,
        21,
        13,
        254,
        15561,
        1,
        76,
        44,
        2787,
        57,
        103,
        173,
        14215,
        4,
        2026,
        836,
        3555,
        515,
        2707,
        378,
        5495,
        64,
    ],
    snr_db=-9,
    grant="sr",
    cell={},
    ranks=[2, 1, 3, 1, 2],
    seed=2284945232,
)
@example(  # two rows of one block, of which the second was taken for one that HARQ had given up
    sizes=[1, 1, 2941, 1, 1, 1, 675, 1, 1, 1], snr_db=-9, grant="sr", cell={"allocation": 0}, ranks=[1] * 5, seed=171
)
def test_bytes_of_all_channels_come_once_and_in_order(network, flat, sizes, snr_db, grant, cell, ranks, seed):
    """Whatever is lost on the way, in two devices with channels in two slices."""
    rng = np.random.default_rng(seed)
    slices = [{"name": "a", "min": 20, "max": 50}, {"name": "b"}]
    channels = [Channel(priority=rank, prioritised_kbytes_s=[0, 8, 65536][rank % 3]) for rank in ranks]
    slice_of, device_of = [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]
    mac = Mac(
        network(slices, **cell), slice_of, seed=seed, trace=flat(snr_db, 12), grant=grant,
        device_of=device_of, channels=channels,
    )  # fmt: skip
    offered = {}
    for size, at in zip(sizes, np.sort(rng.uniform(0, 0.1, len(sizes))), strict=True):
        channel, direction = int(rng.integers(5)), int(rng.integers(2))
        offered[mac.offer(channel, direction, size, at)] = (channel, direction, size)
    done = mac.run(200.0)
    assert mac.idle
    assert sorted(done["id"]) == sorted(offered)
    for one in done:
        assert (one["ue"], one["direction"], one["nbytes"]) == offered[int(one["id"])]
    for channel in range(5):
        for direction in range(2):
            mine = done[(done["ue"] == channel) & (done["direction"] == direction)]
            assert (np.diff(mine["id"]) > 0).all()
    flow, block = mac._state.flow, mac._state.block
    assert (flow["enqueued"] == flow["delivered"]).all()
    assert (flow["processes"] == 0).all()
    free, b = 0, mac._state.n[N.free_block]
    while b >= 0:
        free, b = free + 1, block["next"][b]
    assert free == len(block) - 3 * len(slice_of), "no row of a block is kept"
    by_slice = np.zeros((2, 2))
    for channel, direction, size in offered.values():
        by_slice[slice_of[channel], direction] += size
    assert (mac.usage().nbytes == by_slice).all()


def fewest_prbs(nbytes):
    """Of 144 elements at the top MCS on one layer, with the 10 bytes of a block's own headers."""
    top = len(link.QM) - 1
    return next(n for n in range(1, 274) if link.tbs_bits(144 * n, link.QM[top], link.RATE[top], 1) >= 8 * nbytes + 80)


def test_a_block_is_paid_by_the_slices_whose_bytes_it_holds(network, flat):
    """Worked by hand: 350 and 3,150 bytes on the radio, one grant, PRBs as 1 to 9."""
    mac = Mac(
        network(TWO, reference_signals=False), [0, 1], seed=1, trace=flat(60), grant="configured", device_of=[0, 0]
    )
    mac.offer(0, UP, 300, 0.1)
    mac.offer(1, UP, 3000, 0.1)
    done = mac.run(0.2)
    prbs = fewest_prbs(350) + fewest_prbs(3150)
    assert mac.usage().blocks == 1
    assert (done["delivered_s"] == done["delivered_s"][0]).all()
    assert mac.usage().prbs_used[:, UP].tolist() == [prbs * 350 // 3500, prbs - prbs * 350 // 3500]


def flooded(network, flat, slices, channels, direction, seconds=1.0):
    mac = Mac(network(slices), [0, 1], seed=1, trace=flat(14), grant="configured", device_of=[0, 0], channels=channels)
    for channel in range(2):
        mac.offer_all(channel, direction, 30_000, np.zeros(2000))
    mac.run(seconds)
    return mac.usage().share_used[:, direction]


def test_a_device_decides_what_its_grant_carries(network, flat):
    """Slices of 20 and 80 % of a device that floods both: its own priorities decide, and charging follows the bytes."""
    slices = [{"name": "a", "max": 20}, {"name": "b", "max": 80}]
    first = [Channel(priority=1, prioritised_kbytes_s="infinity"), Channel(priority=9)]
    assert flooded(network, flat, slices, first, UP) == pytest.approx([1, 0], abs=0.02)
    even = [Channel(priority=5, prioritised_kbytes_s=0)] * 2
    assert flooded(network, flat, slices, even, UP) == pytest.approx([0.5, 0.5], abs=0.02)


def test_the_base_station_holds_the_downlink_to_its_slices(network, flat):
    """Its own blocks have from each slice's channels what that slice was given, whatever their priorities."""
    slices = [{"name": "a", "max": 20}, {"name": "b", "max": 80}]
    first = [Channel(priority=1, prioritised_kbytes_s="infinity"), Channel(priority=9)]
    assert flooded(network, flat, slices, first, DOWN) == pytest.approx([0.2, 0.8], abs=0.02)


def test_what_outranks_a_queue_asks_for_a_grant(network, flat):
    """TS 38.321 5.4.5: what has priority over all that waits triggers a report, so a request; else not."""
    requests = []
    for ranks in ((1, 9), (9, 1)):
        mac = Mac(
            network(TWO, sr_period_ms=5), [0, 1], seed=1, trace=flat(60), device_of=[0, 0],
            channels=[Channel(priority=rank) for rank in ranks],
        )  # fmt: skip
        mac.offer(1, UP, 2000, 0.1)
        mac.offer(0, UP, 100, 0.1001)
        mac.run(0.101)
        requests.append(mac.usage().requests)
        assert len(mac.run(0.2)) == 2
        assert mac.usage().requests == 1, "the first block's report goes before the second request"
    assert requests == [2, 1]


@pytest.mark.parametrize("slice_of", [[0, 0], [0, 1]])
def test_an_alarm_passes_a_video(network, flat, slice_of):
    """A queue of 1 MB on a slow link: an alarm of higher priority goes past it, one of lower waits for it."""
    ms = {}
    for rank in (1, 16):
        mac = Mac(
            network(TWO), slice_of, seed=1, trace=flat(0), device_of=[0, 0],
            channels=[Channel(priority=rank, prioritised_kbytes_s=0), Channel(priority=8, prioritised_kbytes_s=0)],
        )  # fmt: skip
        mac.offer(1, UP, 1_000_000, 0.0)
        alarm = mac.offer(0, UP, 200, 0.1)
        done = mac.run(20.0)
        ms[rank] = 1e3 * float((done["delivered_s"] - done["arrived_s"])[done["id"] == alarm][0])
    assert ms[1] < 100
    assert ms[16] > 3 * ms[1]


def test_channels_that_cannot_be(network, flat):
    slices = [{"name": f"s{k}"} for k in range(9)]
    with pytest.raises(ChannelError, match="channels in 9 slices, and 5G allows 8"):
        Mac(network(slices), list(range(9)), seed=1, trace=flat(20), device_of=[0] * 9)
    with pytest.raises(MacError, match="2 channels by slice, 3 by device"):
        Mac(network(), [0, 0], seed=1, trace=flat(20), device_of=[0, 0, 1])


def test_services_share_devices_in_the_twin(network):
    """An alarm on the cameras' devices: with priority over the pictures it waits for less than after them."""
    cell = network(TWO, sites=[{"name": "mast", "kind": "edge"}])
    p99 = {}
    for rank in (1, 16):
        camera = Flow("camera", "a", 4, 20.0, site="mast", bytes_up=[60_000], bytes_down=[200])
        alarm = Flow(
            "alarm", "a", 4, 10.0, "poisson", site="mast", bytes_up=[200], bytes_down=[50],
            devices_of="camera", channel=Channel(priority=rank),
        )  # fmt: skip
        run = twin.run(cell, [camera, alarm], until_s=2, seed=1)
        assert run.readings["alarm"].answered == len(run.readings["alarm"].sent_s)
        p99[rank] = np.percentile(run.readings["alarm"].latency_ms, 99)
    assert p99[1] < p99[16]


def test_devices_of_what_is_not_there(network):
    flow = Flow("alarm", "all", 1, 1.0, site="mast", bytes_up=[1], bytes_down=[1], devices_of="camera")
    with pytest.raises(TrafficError, match=r"on the devices of 'camera', which does not exist; choose none"):
        twin.run(network(), [flow], until_s=1, seed=1)
    own = replace(flow, name="camera", devices_of="")
    with pytest.raises(MacError, match="devices with several services are for one cell so far"):
        twin.run(network(scenario="umi", trps=3), [own, flow], until_s=1, seed=1)
