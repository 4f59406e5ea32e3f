"""Queues against their closed forms: the radio of one device, and the servers of a site."""

import numpy as np
import pytest

from airserve.network import link
from airserve.network.buffers import wire_bytes
from airserve.network.mac import DOWN, Mac
from airserve.network.traffic import queue_starts


def record_of_one_slot(elements, prbs):
    """Bytes that, with headers of packets and of the block, fill the transport block of one slot at the top MCS."""
    top = len(link.QM) - 1
    room = link.tbs_bits(elements * prbs, link.QM[top], link.RATE[top], 1) // 8 - 10
    return next(n for n in range(room, 0, -1) if wire_bytes(n) == room)


def slots_begun(eligible):
    """First slot of each record in a queue that serves one a slot: Lindley's recursion, unrolled."""
    number = np.arange(len(eligible))
    return number + np.maximum.accumulate(eligible - number)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_the_radio_of_one_device_is_a_queue_of_constant_service(network, flat, load):
    """FDD, records of one slot each, Poisson: every record is sent in the slot of Lindley's recursion, and its mean
    latency is M/D/1's: half a slot to the boundary, one of service, load / 2(1 - load) of waiting, within 3 %.
    """
    net = network(duplex="fdd", bandwidth_mhz=5, scs_khz=15, reference_signals=False)
    nbytes = record_of_one_slot(132, net.cell.prbs)
    rng = np.random.default_rng(4)
    at_ms = np.cumsum(rng.exponential(1 / load, 6_000_000))
    starts = slots_begun(np.ceil(at_ms).astype(np.int64))
    closed = 0.5 + 1 + load / (2 * (1 - load))
    assert np.mean(starts + 1 - at_ms) == pytest.approx(closed, rel=0.03)
    some = 3000
    mac = Mac(net, [0], seed=1, trace=flat(60), processing=False, max_records=some)
    for t in at_ms[:some]:
        mac.offer(0, DOWN, nbytes, t / 1e3)
    done = mac.run(at_ms[some] / 1e3 + 1)
    assert done["id"].tolist() == list(range(some))
    assert np.rint(done["granted_s"] * 1e3).astype(np.int64).tolist() == starts[:some].tolist()
    assert done["delivered_s"] * 1e3 == pytest.approx(starts[:some] + 1.0)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_site_is_m_d_1(load):
    """Pollaczek and Khinchine: the mean wait is load / 2(1 - load) services."""
    n = 6_000_000
    at_s = np.cumsum(np.random.default_rng(4).exponential(1 / load, n))
    wait = queue_starts(at_s, np.ones(n), np.zeros(n, np.int64), np.zeros((1, 1))) - at_s
    assert wait.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.03)
