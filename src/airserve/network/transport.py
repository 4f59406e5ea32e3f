"""TCP between a device and a site, as the twin has it: windows of segments, bursts of a few, each acknowledged.

RFC 9293 (handshake), RFC 6928 (initial window of 10), RFC 5681 (slow start), RFC 2861 (restart after idling), RFC 6298
(retransmission timeout), RFC 8446 (TLS 1.3). The radio repeats what it loses (HARQ, RLC), so TCP sees no loss and slow
start never ends; a receive window never binds.
"""

from __future__ import annotations

import numpy as np

from airserve.model import Array
from airserve.network.headers import PACKET_BYTES
from airserve.network.jit import inner

STREAM, UDP, WARM, COLD, TLS = range(5)
NAMES = ("stream", "udp", "tcp-warm", "tcp-cold", "tls")

INITIAL_SEGMENTS = 10
BURST_SEGMENTS = 4  # sent, and acknowledged, as one: finer changes little and costs more
RTO_MIN_S = 0.2  # added to the smoothed round trip, as Linux does
SYN_BYTES = 20  # of options, beside the headers that every packet has
ACK_BYTES = 12  # timestamps
HELLO_UP_BYTES, HELLO_DOWN_BYTES = 517, 3000  # ClientHello; ServerHello with a certificate chain of two

SENDER = np.dtype(  # one direction of a connection
    [
        ("window", "f8"),  # congestion window, segments
        ("flying", "i8"),  # segments sent and not acknowledged
        ("peak", "i8"),  # most that were flying since the last idling
        ("sent_s", "f8"),  # when it last sent
        ("rtt_s", "f8"),  # smoothed; 0: not measured yet
        ("bursts", "i8"),  # sent, ever
        ("acked", "i8"),  # of these
        ("timing", "i8"),  # number of the burst that is timed
        ("timed_s", "f8"),  # when it was sent
        ("head", "i8"),  # first request with bytes to send
        ("tail", "i8"),
        ("left", "i8"),  # bytes of that request to send
    ],
    align=True,
)


def senders(n: int) -> Array:
    """Connections at their start, SENDER (n, 2): by direction (0 down, 1 up)."""
    made = np.zeros((n, 2), SENDER)
    made["window"], made["timing"], made["head"], made["tail"], made["sent_s"] = INITIAL_SEGMENTS, -1, -1, -1, -np.inf
    return made


@inner
def timeout_s(sender: Array, k: int, way: int) -> float:
    """How long a sender waits for an acknowledgement (RFC 6298, with Linux's least)."""
    return float(sender[k, way].rtt_s + RTO_MIN_S)


@inner
def wake(sender: Array, k: int, way: int, now_s: float) -> None:
    """Before sending: halve the window for every timeout that passed in silence, down to the initial one."""
    one = sender[k, way]
    if one.flying > 0:
        return
    after_s = timeout_s(sender, k, way)
    idle_s = now_s - one.sent_s - after_s
    if idle_s > 0:
        one.peak = 0
    while idle_s > 0 and one.window > INITIAL_SEGMENTS:
        one.window = max(one.window / 2, INITIAL_SEGMENTS)
        idle_s -= after_s


@inner
def burst(sender: Array, k: int, way: int, now_s: float) -> int:
    """Segments that may be sent now of the request at the head, and are counted as sent; 0: none."""
    one = sender[k, way]
    segments = min(int(one.window) - one.flying, BURST_SEGMENTS, (one.left + PACKET_BYTES - 1) // PACKET_BYTES)
    if one.head < 0 or segments <= 0:
        return 0
    one.flying += segments
    one.peak = max(one.peak, one.flying)
    one.sent_s = now_s
    if one.timing < 0:
        one.timing, one.timed_s = one.bursts, now_s
    one.bursts += 1
    return int(segments)


@inner
def acknowledged(sender: Array, k: int, way: int, segments: int, now_s: float) -> None:
    """A burst was: the window grows by as many segments, where it was what held the sender back."""
    one = sender[k, way]
    one.flying -= segments
    if one.window < 2 * one.peak:
        one.window += segments
    if 0 <= one.timing <= one.acked:
        sample_s = now_s - one.timed_s
        one.rtt_s = sample_s if one.rtt_s == 0 else 0.875 * one.rtt_s + 0.125 * sample_s
        one.timing = -1
    one.acked += 1


@inner
def given_up(sender: Array, k: int, way: int, segments: int) -> None:
    """A burst that a rule dropped timed out: its request is lost, the next one starts slowly (RFC 5681 3.1)."""
    one = sender[k, way]
    one.flying -= segments
    one.window, one.peak, one.timing = INITIAL_SEGMENTS, one.flying, -1
    one.acked += 1


@inner
def ack_bytes(segments: int) -> int:
    """Bytes of the acknowledgements of a burst, one for two segments (RFC 1122 4.2.3.2), as one record."""
    packets = (segments + 1) // 2
    return packets * ACK_BYTES + (packets - 1) * 44  # the record's own packet has its headers already
