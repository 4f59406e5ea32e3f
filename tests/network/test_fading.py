"""Link adaptation on a channel that moves: the outer loop against the target, under AR(1) Rayleigh fading."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airserve.network import adaptation
from airserve.network.buffers import FLOW
from airserve.network.jit import njit
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.radio import Trace

SNAPSHOT_S = 0.001


def rayleigh(speed_kmh, mean_db, ues, seconds, rng):
    """SNR in dB of one layer, float32 (ues, snapshots, 1): AR(1) whose step has the correlation of Clarke's model."""
    doppler_hz = speed_kmh / 3.6 / 299_792_458 * 3.5e9
    angle = np.linspace(0, np.pi, 10_001)
    rho = np.mean(np.cos(2 * np.pi * doppler_hz * SNAPSHOT_S * np.sin(angle)))  # J0
    n = int(seconds / SNAPSHOT_S)
    noise = (rng.standard_normal((n, ues)) + 1j * rng.standard_normal((n, ues))) / np.sqrt(2)
    gain = np.empty_like(noise)
    gain[0] = noise[0]
    for i in range(1, n):
        gain[i] = rho * gain[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return (mean_db + 20 * np.log10(np.abs(gain))).T[..., None].astype(np.float32)


@pytest.mark.parametrize("speed_kmh", [3, 30])
@pytest.mark.parametrize("direction", [DOWN, UP])
def test_the_outer_loop_holds_its_target(network, speed_kmh, direction):
    """Of first transmissions 10 % fail, give or take two points, on foot and on a forklift."""
    snr_db = rayleigh(speed_kmh, 18.0, 4, 8.0, np.random.default_rng(speed_kmh))
    trace = Trace("inf-dh", SNAPSHOT_S, snr_db, snr_db, np.zeros((4, 3), np.float32), {})
    mac = Mac(network(), [0] * 4, seed=1, trace=trace, grant="configured")
    for ue in range(4):
        for _ in range(900):
            mac.offer(ue, direction, 100_000, 0.0)
    mac.run(3.0)  # in which the loop finds its way down
    before = mac.usage()
    mac.run(11.0)
    after = mac.usage()
    blocks = after.blocks - before.blocks
    assert blocks > 1_500
    assert (after.failed - before.failed) / blocks == pytest.approx(0.1, abs=0.02)


class Traced(NamedTuple):
    """As much of a state and of a configuration as a place in a trace needs."""

    flow: Any
    snr_db: Any
    snapshot: float


@njit
def place(traced, slot):
    return adaptation.place(traced, traced, 0, slot)


@settings(deadline=None)
@given(
    offset=st.floats(0, 200),
    slot=st.integers(0, 10**9),
    snapshot=st.floats(0.25, 1000),
    snapshots=st.integers(1, 300),
)
@example(offset=0.0, slot=3 * 198, snapshot=3.0, snapshots=100)
@example(offset=np.nextafter(198.0, 0), slot=0, snapshot=1.0, snapshots=100)
@example(offset=0.1, slot=593, snapshot=2.9999999999999996, snapshots=100)
def test_a_trace_is_walked_forth_and_back(offset, slot, snapshot, snapshots):
    """To the bit as Python's remainder has it."""
    flow = np.zeros(1, FLOW)
    flow["offset"] = offset
    at = place(Traced(flow, np.zeros((2, 1, snapshots, 1), np.float32), snapshot), slot)
    length = 2 * (snapshots - 1)
    expected = (offset + slot / snapshot) % length if length else 0.0
    assert at == min(expected, length - expected)
