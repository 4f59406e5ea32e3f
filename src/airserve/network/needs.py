"""What flows want of a slot: PRBs, and by proportional fair the right to them.

Kelly 1997 (proportional fair). A flow whose device has several channels stands for its group (channels.py).
"""

from __future__ import annotations

from math import exp

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import EFFICIENCY, block_bits, choose, listen, reach
from airserve.network.allocation import whole
from airserve.network.buffers import NONE, UP, Config, N, State, waiting
from airserve.network.channels import mirror
from airserve.network.harq import PROCESSES
from airserve.network.headers import BLOCK
from airserve.network.jit import inner

BLOCK_OVERHEAD_BYTES = sum(BLOCK.values())
OVERFULL = 8  # times the PRBs of the carrier
MEMORY = 200.0  # slots of the average of proportional fair
FADED = np.array([exp(-slots / MEMORY) for slots in range(64)])  # of an average, after so many slots


@inner
def demand(s: State, c: Config, direction: int, k: int, elements: int) -> int:
    """PRBs that the flows of a slice would fill; each flow's need and metric, and idle flows out of the list.

    A slice that would fill the carrier many times over is not counted exactly: the needs of the few flows that
    are served are then found one by one (need 0).
    """
    slot = s.n[N.slot]
    total = 0.0
    before, f = NONE, s.active[direction, k]
    while f != NONE:
        flow, at = s.flow[f], f
        f = flow.next
        nbytes = waiting(s, at)
        if nbytes <= 0:
            deactivate(s, at, before)
            continue
        before = at
        slices = s.slices[direction]
        slices[k].waited_s = max(slices[k].waited_s, slot * c.slot_s - oldest_s(s, at, slot * c.slot_s))
        flow.metric, flow.need = 0.0, 0
        link = s.flow[flow.link]
        if link.processes >= PROCESSES or link.served == slot or (link.half and barred(s, c, flow.link)):
            continue
        listen(s, c, flow.link, slot)
        if flow.several:
            mirror(s, at)
        flow.average *= faded(slot - flow.averaged)
        flow.averaged = slot
        rate = flow.layers * EFFICIENCY[flow.mcs]
        flow.metric = rate / max(flow.average, 1e-3)
        total += 8 * nbytes / (rate * elements)
    if total > OVERFULL * c.prbs:
        return int(total)
    needed = 0
    f = s.active[direction, k]
    while f != NONE:
        if s.flow[f].metric > 0:
            s.flow[f].need = known_blocks_for(s, c, f, elements)
            needed += s.flow[f].need
        f = s.flow[f].next
    return needed


@inner
def other_way(c: Config, f: int) -> int:
    """The flow of the same device in the other direction."""
    return f - c.ues if f >= c.ues else f + c.ues


@inner
def barred(s: State, c: Config, f: int) -> bool:
    """Whether a half-duplex device has no ear, or no voice, for a flow in this slot: directions take turns."""
    other, slot = s.flow[other_way(c, f)], s.n[N.slot]
    return bool(other.served == slot or (other.active and other.served < s.flow[f].served == slot - 1))


@inner
def free(s: State, c: Config, f: int) -> bool:
    """Whether a flow's device can take a block in this slot: one each way, and not both for a half-duplex one."""
    flow, slot = s.flow[f], s.n[N.slot]
    return bool(flow.served != slot and not (flow.half and s.flow[other_way(c, f)].served == slot))


@inner
def oldest_s(s: State, f: int, now_s: float) -> float:
    """When the first record arrived of which bytes wait to be sent for the first time; now, where none does."""
    if s.flow[f].several:
        return oldest_in_group_s(s.flow, s.channel, s.record, f, now_s)
    return oldest_in_stream_s(s.flow, s.record, f, now_s)


@inner
def oldest_in_group_s(flow: Array, channel: Array, record: Array, group: int, now_s: float) -> float:
    """As `oldest_s`, of a group of several channels."""
    first_s, f = now_s, channel[group].first
    while f != NONE:
        if flow[f].group == group:
            first_s = min(first_s, oldest_in_stream_s(flow, record, f, now_s))
        f = channel[f].following
    return first_s


@inner
def oldest_in_stream_s(flow: Array, record: Array, f: int, now_s: float) -> float:
    """As `oldest_s`, of one channel."""
    one = flow[f]
    if one.head != NONE and record[one.head].end > one.sent:
        return float(record[one.head].arrived_s)
    return float(record[one.unsent].arrived_s) if one.unsent != NONE else now_s


@inner
def deactivate(s: State, f: int, before: int) -> None:
    """Take a flow out of the list of its slice, where it stands behind another, or first (NONE)."""
    flow = s.flow[f]
    flow.active = 0
    s.n[N.active + flow.direction] -= 1
    if before == NONE:
        s.active[flow.direction, flow.slice] = flow.next
    else:
        s.flow[before].next = flow.next


@inner
def faded(slots: int) -> float:
    """What is left of an average of proportional fair after some slots."""
    return float(FADED[slots] if slots < FADED.size else np.exp(-slots / MEMORY))


@inner
def known_blocks_for(s: State, c: Config, f: int, elements: int) -> int:
    """`blocks_for`, worked out again only where bytes, report or slot have changed: a flow waits in many slots."""
    flow, nbytes = s.flow[f], waiting(s, f)
    if flow.needed_bytes != nbytes or flow.needed_elements != elements or flow.several:
        flow.needed = blocks_for(s, c, f, elements)
        flow.needed_bytes, flow.needed_elements = nbytes, elements
    return int(flow.needed)


@inner
def blocks_for(s: State, c: Config, f: int, elements: int) -> int:
    """Fewest PRBs, at most all, whose transport block holds what waits and its own overhead."""
    flow = s.flow[f]
    bits = 8 * (waiting(s, f) + BLOCK_OVERHEAD_BYTES)
    mcs, layers = flow.mcs, flow.layers
    most = reach(s, c, f) if flow.direction == UP and mcs == flow.mcs_first else int(flow.most)
    prbs = fewest(bits, elements, mcs, layers, most)
    if flow.direction == UP and prbs < c.prbs:  # fewer PRBs have more power each, which may allow a better MCS
        mcs, layers = choose(s, c, f, prbs)
        prbs = fewest(bits, elements, mcs, layers, most)
    return whole(prbs, c.group, flow.most) if c.group > 1 else prbs


@inner
def fewest(bits: int, elements: int, mcs: int, layers: int, most: int) -> int:
    """Fewest PRBs, at most `most`, whose transport block holds some bits: blocks grow with PRBs, so the next will do.

    Without the rounding of blocks the first guess would be right; it is at most 8 off.
    """
    prbs = min(int(np.ceil(bits / (elements * EFFICIENCY[mcs] * layers))), most)
    if block_bits(elements, prbs, mcs, layers) >= bits:
        while prbs > 1 and block_bits(elements, prbs - 1, mcs, layers) >= bits:
            prbs -= 1
    else:
        while prbs < most and block_bits(elements, prbs, mcs, layers) < bits:
            prbs += 1
    return prbs
