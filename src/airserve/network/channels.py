"""Logical channels of a device that has several: what each is owed, and what the group that they report in holds.

TS 38.321 5.4.3.1 and 5.4.5, TS 38.331 LogicalChannelConfig. A flow is one channel in one direction. A device's flows
share a link (radio, HARQ), that of its first; those in one slice are a channel group, under the name of its first:
a buffer status report tells of groups, so the base station knows of bytes by slice. With one channel to a device, which
is usual, flow, group and link are one, and nothing of this is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from airserve.errors import UserError
from airserve.model import Array
from airserve.network.cell import Description
from airserve.network.jit import inner
from airserve.network.topology import Slice

if TYPE_CHECKING:
    from airserve.network.buffers import State

NONE = -1
MOST_GROUPS = 8  # of a device, TS 38.331 maxLCG-ID; also slices, TS 23.501 5.15.2.1
NEVER_SHORT = float("inf")  # of a prioritised bit rate

CHANNEL = np.dtype(  # of a flow whose device has several
    [
        ("first", "i8"),  # at a link: the device's flow of highest priority
        ("following", "i8"),  # the next in order of priority, or NONE
        ("priority", "i8"),
        ("rate", "f8"),  # prioritised bit rate in bytes a slot
        ("bucket", "f8"),  # Bj in bytes
        ("most", "f8"),  # that it holds
        ("filled", "i8"),  # slot up to which
        ("allowed", "i8"),  # to use the grant that is being filled
        ("allotted", "i8"),  # bytes for it in the grant that is being filled
        ("cut_from", "i8"),  # the last record of which bytes were sent: its start and end in the stream
        ("cut_to", "i8"),
        ("part", "i8"),  # at a group: PRBs for it in the grant of this slot
        ("believed", "i8"),  # at a group: bytes that the base station thinks are left
        ("went", "i8"),  # at a group: bytes in the block just made
    ],
    align=True,
)


class ChannelError(UserError, ValueError):
    """Channels that a device cannot have; the message is one sentence for the user."""


class ConfiguredGrant(Description):
    """PRBs that a service's devices have without asking: type 1, TS 38.321 5.8.2; configured.py."""

    period_ms: float = Field(gt=0)
    bytes: int = Field(ge=1)  # of the application, that fit in one
    offset_ms: float | None = Field(None, ge=0)  # in the period, of all devices; none: they are spread over it


class Channel(Description):
    """A service's logical channel: TS 38.331 LogicalChannelConfig, ul-SpecificParameters.

    >>> Channel(priority=1).prioritised_kbytes_s
    8
    """

    priority: int | None = Field(None, ge=1, le=16)  # the lower, the sooner; none: by the slice's 5QI
    prioritised_kbytes_s: Literal[
        0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, "infinity"
    ] = 8  # prioritised bit rate
    bucket_ms: Literal[5, 10, 20, 50, 100, 150, 300, 500, 1000] = 50  # bucket size duration
    configured_grant: ConfiguredGrant | None = None


def priority(channel: Channel, slice: Slice) -> int:
    """Of 16: a channel's own, or the 5QI's of 127 levels (TS 23.501 5.7.3.3), eight to one.

    >>> priority(Channel(), Slice(name="video", five_qi=82)), priority(Channel(priority=1), Slice(name="alarm"))
    (3, 1)
    """
    return channel.priority or 1 + (slice.quality.priority - 1) // 8


@dataclass(frozen=True)
class Belonging:
    """Of every channel of a cell: its slice, its device, and what else is said of it."""

    slice_of: Array  # int64 (channels,): index
    device_of: Array  # int64 (channels,): any number for a device
    channels: Sequence[Channel]


def lay_out(flow: Array, belongs: Belonging, slices: Sequence[Slice], slot_s: float) -> Array:
    """Set `ue`, `link`, `group` and `several` of all flows; returns their CHANNEL, empty where no device has two.

    Raises `ChannelError` for a device in too many slices.
    """
    n, channels = len(belongs.device_of), belongs.channels
    mine: dict[int, list[int]] = {}
    for number, device in enumerate(belongs.device_of.tolist()):
        mine.setdefault(device, []).append(number)
    channel = np.zeros(len(flow) if len(mine) < n else 0, CHANNEL)
    flow["link"] = flow["group"] = np.arange(len(flow))
    for numbers in mine.values():
        if len(numbers) == 1:
            continue
        in_slice: dict[int, int] = {}
        for number in numbers:
            in_slice.setdefault(int(flow["slice"][number]), number)
        if len(in_slice) > MOST_GROUPS:
            raise ChannelError(
                f"a device has channels in {len(in_slice)} slices, and 5G allows {MOST_GROUPS} at once "
                "(TS 23.501 5.15.2.1); give its services fewer slices."
            )
        ranks = {k: priority(channels[k], slices[flow["slice"][k]]) for k in numbers}
        order = sorted(numbers, key=lambda k: (ranks[k], k))
        for base in (0, n):
            for k, following in zip(order, [*order[1:], None], strict=True):
                one, rate = channel[base + k], channels[k].prioritised_kbytes_s
                flow["several"][base + k] = 1
                flow["link"][base + k] = base + numbers[0]
                flow["group"][base + k] = base + in_slice[int(flow["slice"][k])]
                one["first"] = base + order[0]
                one["following"] = NONE if following is None else base + following
                one["priority"] = ranks[k]
                one["rate"] = NEVER_SHORT if rate == "infinity" else rate * 1e3 * slot_s
                one["most"] = NEVER_SHORT if rate == "infinity" else rate * channels[k].bucket_ms
        flow["ue"][[*numbers, *(n + k for k in numbers)]] = numbers[0]
    return channel


@inner
def sent_of(flow: Array, channel: Array, group: int) -> int:
    """Bytes of a group that were put in blocks. Given two arrays and not the State, callers stay small and fast."""
    if not flow[group].several:
        return int(flow[group].sent)
    total, f = 0, channel[group].first
    while f != NONE:
        if flow[f].group == group:
            total += flow[f].sent
        f = channel[f].following
    return total


@inner
def backlog(flow: Array, channel: Array, group: int) -> int:
    """Bytes of a group that were not yet put in blocks."""
    if not flow[group].several:
        return int(flow[group].enqueued - flow[group].sent)
    total, f = 0, channel[group].first
    while f != NONE:
        if flow[f].group == group:
            total += flow[f].enqueued - flow[f].sent
        f = channel[f].following
    return total


@inner
def waiting_in_group(flow: Array, channel: Array, group: int) -> int:
    """As `buffers.waiting`, of a group."""
    lost, f = 0, channel[group].first
    while f != NONE:
        if flow[f].group == group:
            lost += flow[f].lost
        f = channel[f].following
    return int(max(max(flow[group].known - sent_of(flow, channel, group), 0) + lost, flow[group].asked))


@inner
def drained(flow: Array, channel: Array, f: int) -> bool:
    """Whether a flow's device has nothing to send for the first time in its direction."""
    if not flow[f].several:
        return bool(flow[f].sent == flow[f].enqueued)
    f = channel[f].first
    while f != NONE:
        if flow[f].sent != flow[f].enqueued:
            return False
        f = channel[f].following
    return True


@inner
def outranks(flow: Array, channel: Array, f: int) -> bool:
    """Whether what comes to a flow has priority over all that its device has to send: a regular report, 5.4.5."""
    own, g = channel[f].priority, channel[f].first
    while g != NONE and channel[g].priority <= own:
        if flow[g].sent != flow[g].enqueued:
            return False
        g = channel[g].following
    return True


@inner
def mirror(s: State, f: int) -> None:
    """A group sees the radio as its device's link does."""
    flow, link = s.flow[f], s.flow[s.flow[f].link]
    flow.mcs, flow.layers, flow.olla_db, flow.report, flow.rise_db = (
        link.mcs, link.layers, link.olla_db, link.report, link.rise_db,
    )  # fmt: skip
    for k in range(s.reported_db.shape[1]):
        s.reported_db[f, k] = s.reported_db[flow.link, k]
        s.whole_db[f, k] = s.whole_db[flow.link, k]


@inner
def sole(channel: Array, f: int, prbs: int) -> None:
    """A grant is one group's alone."""
    g = channel[f].first
    while g != NONE:
        channel[g].part = prbs if g == f else 0
        g = channel[g].following


@inner
def served(flow: Array, channel: Array, f: int) -> None:
    """A flow's device has had its turn in this slot."""
    flow[f].metric = 0.0
    if flow[f].several:
        g = channel[f].first
        while g != NONE:
            flow[g].metric = 0.0
            g = channel[g].following
