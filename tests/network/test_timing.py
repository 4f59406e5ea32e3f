"""When one packet arrives, against an enumeration of what TS 38.213, 38.214 and 38.321 say, written for this test."""

import numpy as np
import pytest

from airserve.network.mac import DOWN, UP, Mac

N1 = {1: {15: 8, 30: 10, 60: 17, 120: 20}, 2: {15: 3, 30: 4.5, 60: 9}}  # TS 38.214 Tables 5.3-1 and 5.3-2
N2 = {1: {15: 10, 30: 12, 60: 23, 120: 36}, 2: {15: 5, 30: 5.5, 60: 11}}  # Tables 6.4-1 and 6.4-2
FR2 = {"carrier_ghz": 28.0, "scs_khz": 120}


def one_packet(duplex, tdd, scs_khz, capability, way, grant, sr_ms, k2):
    """Distribution of the latency in ms of a packet that arrives at any instant: [(low, high)] of equal weight.

    What arrives is prepared for N2/2 symbols and waits for a slot boundary; so arrivals of one slot's length share
    the slot in which they are sent, and their latency is uniform over the length of a slot.
    """
    slot_ms = 15 / scs_khz
    prepare_ms, decode_ms = (n[capability][scs_khz] / 2 * slot_ms / 14 for n in (N2, N1))
    letters = "X" if duplex == "fdd" else tdd  # X: both directions in one slot

    def has(slot, direction):
        letter = letters[slot % len(letters)]
        return letter in ("UX" if direction == UP else "DSX")

    period = len(letters) * max(1, round(sr_ms / slot_ms / len(letters)))
    request_at = next(slot for slot in range(period) if has(slot, UP))
    found = []
    for first in range(period):
        slot = first
        if way == UP and grant == "sr":
            while slot % period != request_at:
                slot += 1
            slot += 1  # the base station has decoded the request
            while not has(slot, DOWN):
                slot += 1
            slot += k2
        while not has(slot, way):
            slot += 1
        low = (slot + 1 - first) * slot_ms + decode_ms + prepare_ms
        found.append((low, low + slot_ms))
    return found


def distance(sample, parts):
    """Kolmogorov and Smirnov's distance between a sample and a mixture of uniform distributions."""
    at = np.sort(sample)
    low, high = np.array(parts).T
    law = np.clip((at[:, None] - low) / (high - low), 0, 1).mean(axis=1)
    n = len(at)
    return max(np.abs(law - np.arange(n) / n).max(), np.abs(law - np.arange(1, n + 1) / n).max())


CELLS = [
    {"tdd": "DDDSU"},
    {"tdd": "DDDDDDDSUU"},
    {"tdd": "DSUU", "special": [6, 4, 4]},
    {"tdd": "DDDSUDDSUU", "bandwidth_mhz": 20, "scs_khz": 15},
    {"tdd": "DDSU", "scs_khz": 60},
    {"tdd": "DDDSU", "ue_capability": 2},
    {"tdd": "DDDSU", **FR2},
    {"duplex": "fdd", "bandwidth_mhz": 20},
    {"duplex": "fdd", "bandwidth_mhz": 20, "scs_khz": 15, "ue_capability": 2},
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: " ".join(map(str, cell.values())))
@pytest.mark.parametrize(("sr_ms", "k2"), [(20, 4), (5, 2), (10, 7)])
def test_latency_of_one_packet_is_that_of_enumeration(network, flat, cell, sr_ms, k2):
    """TDD x SR x K2 x phase of arrival, in both directions, by request and by configured grant: distance <= 0.01."""
    net = network(sr_period_ms=sr_ms, k2_slots=k2, **cell)
    one = net.cell
    letters = 1 if one.duplex == "fdd" else len(one.tdd)
    special_up = one.duplex == "tdd" and one.special[2] >= 4
    period_s = letters * max(1, round(sr_ms / one.slot_ms / letters)) * one.slot_ms / 1e3
    n = 1000
    phase = np.arange(n) * 0.6180339887498949 % 1  # evenly over the period, whatever the length of a slot
    at = 0.1 + (4 * np.arange(n) + phase) * period_s
    for way, grant in ((DOWN, "sr"), (UP, "sr"), (UP, "configured")):
        mac = Mac(net, [0], seed=1, trace=flat(60), grant=grant)
        for t in at:
            mac.offer(0, way, 100, t)
        done = mac.run(at[-1] + 1)
        assert len(done) == n
        ms = (done["delivered_s"] - done["arrived_s"]) * 1e3
        tdd = one.tdd.replace("S", "X") if special_up else one.tdd
        law = one_packet(one.duplex, tdd, one.scs_khz, one.ue_capability, way, grant, sr_ms, k2)
        assert distance(ms, law) <= 0.01


@pytest.mark.parametrize(("capability", "mean_ms"), [(1, 1.143), (2, 0.929)])
def test_one_way_latency_of_fdd(network, flat, capability, mean_ms):
    """TR 37.910 5.7: FDD, 30 kHz, slots of 14 symbols, no retransmission; REFERENCES has 1.143 and 0.929 ms."""
    net = network(duplex="fdd", bandwidth_mhz=20, ue_capability=capability)
    mac = Mac(net, [0], seed=1, trace=flat(60))
    at = 0.1 + np.arange(1000) * 0.005 + (np.arange(1000) + 0.5) / 1000 * 0.0005
    for t in at:
        mac.offer(0, DOWN, 200, t)
    done = mac.run(6.0)
    assert np.mean(done["delivered_s"] - done["arrived_s"]) * 1e3 == pytest.approx(mean_ms, abs=0.002)
