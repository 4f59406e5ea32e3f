"""TCP in the twin against flights counted by hand, and its books."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.network import twin
from airserve.network.traffic import Flow, TrafficError
from airserve.network.transport import INITIAL_SEGMENTS, NAMES, PACKET_BYTES

FAR = {"name": "far", "kind": "edge", "delay_ms": 50, "cores": 8}


def one(network, flat, transport, up=1000, down=1000, rate_hz=0.5, until_s=12.0, **site):
    flow = Flow("a", "all", 1, rate_hz, site="far", bytes_up=[up], bytes_down=[down], transport=transport)
    net = network(sites=({**FAR, **site},))
    return twin.run(net, [flow], until_s=until_s, seed=1, trace=flat(60), grant="configured")


def latency_ms(*args, **kwargs):
    readings = one(*args, **kwargs).readings["a"]
    assert readings.answered == len(readings.sent_s) > 0
    return float(np.median(readings.latency_ms))


def round_trips(nbytes: int) -> int:
    """That a message waits for: flights of 10, 20, 40, ... segments less one (RFC 6928, RFC 5681)."""
    left, window, flights = -(-nbytes // PACKET_BYTES), INITIAL_SEGMENTS, 0
    while left > 0:
        left, window, flights = left - window, 2 * window, flights + 1
    return flights - 1


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("nbytes", [1000, 14_000, 14_001, 42_000, 100_000])
def test_slow_start_takes_the_flights_that_it_takes(network, flat, way, nbytes):
    """A round trip is 100 ms of transit and 2 to 4 ms of radio; capacity does not bind."""
    warm, stream = (latency_ms(network, flat, name, **{way: nbytes}) for name in ("tcp-warm", "stream"))
    trips = round_trips(nbytes)
    assert 100 * trips - 1 <= warm - stream <= 105 * trips + 1


def test_a_handshake_costs_one_round_trip_and_tls_two(network, flat):
    warm, cold, tls = (latency_ms(network, flat, name) for name in ("tcp-warm", "tcp-cold", "tls"))
    assert cold - warm == pytest.approx(103, abs=2)
    assert tls - cold == pytest.approx(103, abs=3)
    assert latency_ms(network, flat, "udp") == latency_ms(network, flat, "stream")


def test_a_connection_that_idles_starts_again(network, flat):
    """10 requests a second come within a timeout and find the window open; one in two seconds finds it at 10."""
    busy = one(network, flat, "tcp-warm", up=100_000, rate_hz=4.0, until_s=5.0).readings["a"].latency_ms
    idle = one(network, flat, "tcp-warm", up=100_000, rate_hz=0.5).readings["a"].latency_ms
    assert np.median(busy) == pytest.approx(latency_ms(network, flat, "stream", up=100_000), rel=0.1)
    assert np.median(idle) > np.median(busy) + 250


def test_acknowledgements_take_the_other_direction(network, flat):
    """Of 100 kB down: 72 segments in bursts of 4, 36 acknowledgements of 52 bytes and headers up."""
    used = {name: one(network, flat, name, down=100_000).slices[0]["up"]["mbps"] for name in ("udp", "tcp-warm")}
    bursts = 2 + 4 + 9 + 3  # about: a flight's last burst may be short
    assert (used["tcp-warm"] - used["udp"]) * 1e6 / 8 / 0.5 == pytest.approx(bursts * (2 * 12 + 44), rel=0.2)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(1, 90_000), st.integers(1, 90_000), st.floats(0.5, 20)),
        min_size=1, max_size=3,
    ),
    st.integers(0, 1000),
)  # fmt: skip
def test_every_message_arrives_once_whatever_carries_it(load, seed):
    """Bytes are conserved, spans add up and none is negative, with losses on the air and requests that overlap."""
    from airserve.network.topology import Network

    net = Network.model_validate(
        {
            "cells": [{"name": "hall"}],
            "slices": [{"name": "all"}],
            "sites": [{**FAR, "delay_ms": 5, "rate_mbps": 200, "queue_kb": 100_000}],
        }
    )
    flows = [
        Flow(f"f{k}", "all", 2, rate, "poisson", site="far", bytes_up=[up], bytes_down=[down], transport=name)
        for k, (name, up, down, rate) in enumerate(load)
    ]
    outcome = twin.run(net, flows, until_s=1.0, seed=seed, drain_s=30.0)
    for readings in outcome.readings.values():
        assert readings.answered == len(readings.sent_s)
        assert (readings.ms >= -1e-9).all()


def test_unknown_transport(network, flat):
    with pytest.raises(TrafficError, match="transport 'sctp'; choose stream, udp, tcp-warm, tcp-cold, tls"):
        one(network, flat, "sctp")
