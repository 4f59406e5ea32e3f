"""One slot of the MAC: demand of every slice, the slice policy, and proportional fair inside a slice.

Kelly 1997 (proportional fair); TS 38.321 5.4 (uplink grants), TS 28.541 4.3.36 (slices).
"""

from __future__ import annotations

from math import exp

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import EFFICIENCY, aggregation, block_bits, choose, listen, reach
from airserve.network.allocation import in_groups, whole
from airserve.network.buffers import (
    LOST_DUE,
    NONE,
    UP,
    Config,
    N,
    State,
    free_block,
    granted,
    new_block,
    remove_failed,
    waiting,
)
from airserve.network.harq import PROCESSES, give_up, happen, queue_resend, transmit
from airserve.network.headers import BLOCK
from airserve.network.jit import inner, njit
from airserve.network.pairing import LAYERS, beside, candidate, gather, settle_shifts
from airserve.network.slicing import allocate, forget, settle
from airserve.network.uplink import reported

BLOCK_OVERHEAD_BYTES = sum(BLOCK.values())
PATIENCE = 20  # slots in which a retransmission may find no room before RLC cuts it anew
OVERFULL = 8  # times the PRBs of the carrier
MEMORY = 200.0  # slots of the average of proportional fair
FADED = np.array([exp(-slots / MEMORY) for slots in range(64)])  # of an average, after so many slots


@inner
def step(s: State, c: Config) -> None:
    """Run one slot."""
    if s.n[N.events] > 0:
        happen(s, c)
    elements = s.pattern[s.n[N.slot] % s.pattern.size].elements
    for direction in range(2):
        if elements[direction] > 0 and s.n[N.active + direction] + s.n[N.resends + direction] > 0:
            schedule(s, c, direction, elements[direction])
    s.n[N.slot] += 1


@inner
def quiet(s: State) -> bool:
    """Nothing to send and nothing awaited: slots may be skipped."""
    waiting = s.n[N.active] + s.n[N.active + 1] + s.n[N.resends] + s.n[N.resends + 1]
    return bool(s.n[N.events] + waiting == 0)


@njit
def schedule(s: State, c: Config, direction: int, elements: int) -> None:
    """Share the PRBs of a slot: what slices need, what the policy gives, retransmissions first, then the fairest."""
    slices = s.slices[direction]
    forget(slices, s.n[N.slot])
    for k in range(c.slices):
        slices[k].need, slices[k].waited_s = 0, 0.0
    b = s.n[N.resend + direction]
    while b != NONE:
        slices[s.flow[s.block[b].flow].slice].need += s.block[b].prbs
        b = s.block[b].next
    for k in range(c.slices):
        slices[k].need += demand(s, c, direction, k, elements)
    given = allocate(c.policy, slices, c.prbs)
    if c.group > 1:
        in_groups(slices, given, c.group, c.prbs)
    quota = given.copy()
    s.n[N.cces] = c.cces[direction]
    resend(s, c, direction, quota, given, elements)
    more = True
    while more:  # slices in turn, so that none takes all of the PDCCH
        more = False
        for k in range(c.slices):
            f = fairest(s, direction, k) if quota[k] > 0 and s.n[N.cces] > 0 else NONE
            if f == NONE:
                continue
            more = True
            if c.together > 1 and slices[k].need > given[k]:
                used = share(s, c, f, quota[k], elements)
            else:
                used = grant(s, c, f, quota[k], elements)
            quota[k] -= used
            s.prbs_used[k, direction] += used
    settle(slices, given, quota)
    if direction != UP:
        busy = False
        for k in range(c.slices):
            busy |= quota[k] != given[k]
        s.n[N.sent] += busy


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
        if flow.processes >= PROCESSES or flow.served == slot or (flow.half and barred(s, c, at)):
            continue
        listen(s, c, at, slot)
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
    flow = s.flow[f]
    if flow.head != NONE and s.record[flow.head].end > flow.sent:
        return float(s.record[flow.head].arrived_s)
    return float(s.record[flow.unsent].arrived_s) if flow.unsent != NONE else now_s


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
    if flow.needed_bytes != nbytes or flow.needed_elements != elements:
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


@inner
def announce(s: State, c: Config, f: int) -> bool:
    """Take the control channel elements of a grant, unless too few are left; the first of a slot always fits."""
    level = min(aggregation(s, c, f), c.cces[s.flow[f].direction])
    if level > s.n[N.cces]:
        return False
    s.n[N.cces] -= level
    return True


@inner
def resend(s: State, c: Config, direction: int, quota: Array, given: Array, elements: int) -> None:
    """HARQ retransmissions, on as many PRBs as before; in a crowded cell that pairs devices, side by side."""
    lead = longest_waiting(s, c, direction, quota, given) if c.together > 1 else NONE
    together, streams, k, prbs = 0, 0, NONE, 0
    if lead != NONE and announce(s, c, s.block[lead].flow):
        flow = s.flow[s.block[lead].flow]
        candidate(s, 0, s.block[lead].flow, lead)
        together, streams, k, prbs = 1, s.block[lead].layers, flow.slice, s.block[lead].prbs
        flow.served = s.n[N.slot]
        quota[k] -= prbs
    following = s.n[N.resend + direction]
    s.n[N.resend + direction], s.n[N.resends + direction] = NONE, 0
    while following != NONE:
        b = following
        block = s.block[b]
        following = block.next
        flow = s.flow[block.flow]
        if together > 0 and b == lead:
            continue
        can = free(s, c, block.flow)
        fits = block.layers <= min(LAYERS[direction], c.together - streams)
        joins = can and together > 0 and fits and flow.slice == k and block.prbs <= prbs
        if joins and beside(s, c, block.flow, b, together) and announce(s, c, block.flow):
            flow.served = s.n[N.slot]
            together += 1
            streams += block.layers
            continue
        if can and block.prbs <= quota[flow.slice] and announce(s, c, block.flow):
            quota[flow.slice] -= block.prbs
            s.prbs_used[flow.slice, direction] += block.prbs
            again(s, c, b, 0.0)
            continue
        block.waited += 1
        if block.waited > PATIENCE:
            give_up(s, b, s.n[N.slot] + 1)
        else:
            queue_resend(s, b)
    if together > 0:
        alone = s.block[lead].layers * EFFICIENCY[s.block[lead].mcs]
        devices = gather(s, c, together, alone, prbs, quota[k] + prbs, elements)
        together_on(s, c, devices, prbs, elements)
        s.prbs_used[k, direction] += prbs


@inner
def longest_waiting(s: State, c: Config, direction: int, quota: Array, given: Array) -> int:
    """Of the blocks of few layers to be sent again by crowded slices the one that has waited longest, or NONE."""
    found = NONE
    b = s.n[N.resend + direction]
    while b != NONE:
        block, k = s.block[b], s.flow[s.block[b].flow].slice
        fits = block.layers <= LAYERS[direction] and block.prbs <= quota[k] and s.slices[direction, k].need > given[k]
        if fits and free(s, c, block.flow) and (found == NONE or block.waited > s.block[found].waited):
            found = b
        b = block.next
    return int(found)


@inner
def again(s: State, c: Config, b: int, shift_db: float) -> None:
    """Send a block once more."""
    s.flow[s.block[b].flow].metric = 0.0
    s.block[b].shift_db = shift_db
    transmit(s, c, b)


@inner
def fairest(s: State, direction: int, k: int) -> int:
    """The flow of a slice whose rate is highest against its own average, or NONE."""
    best, metric = NONE, 0.0
    f = s.active[direction, k]
    while f != NONE:
        if s.flow[f].metric > metric:
            best, metric = f, s.flow[f].metric
        f = s.flow[f].next
    return best


@inner
def share(s: State, c: Config, f: int, quota: int, elements: int) -> int:
    """Serve a flow, and on the same PRBs those that gain most by it; returns the PRBs used."""
    prbs = min(s.flow[f].need if s.flow[f].need > 0 else blocks_for(s, c, f, elements), quota)
    mcs, layers = s.flow[f].mcs, s.flow[f].layers
    if s.flow[f].direction == UP:
        mcs, layers = choose(s, c, f, prbs)
    candidate(s, 0, f, NONE)
    devices = gather(s, c, 1, layers * EFFICIENCY[mcs], prbs, quota, elements)
    if devices == 1:
        return grant(s, c, f, quota, elements)
    if s.flow[f].direction != UP:  # its rate is less than alone; a device's power would be less on more PRBs
        bits, most, one = 8 * (waiting(s, f) + BLOCK_OVERHEAD_BYTES), s.flow[f].most, s.candidate[0]
        prbs = min(whole(fewest(bits, elements, one.mcs, one.layers, most), c.group, most), quota)
    return together_on(s, c, devices, prbs, elements)


@inner
def together_on(s: State, c: Config, devices: int, prbs: int, elements: int) -> int:
    """Serve a group on some PRBs, each device on as many of them as it needs; returns the PRBs used."""
    settle_shifts(s, c, devices, s.n[N.slot])
    used = 0
    for i in range(s.candidate.size):
        one = s.candidate[i]
        if not 0 <= one.place < devices:
            continue
        if one.block != NONE:
            again(s, c, one.block, one.shift_db)
            continue
        bits = 8 * (waiting(s, one.flow) + BLOCK_OVERHEAD_BYTES)
        most = s.flow[one.flow].most
        wanted = min(whole(fewest(bits, elements, one.mcs, one.layers, most), c.group, most), prbs)
        used = max(used, fill(s, c, one.flow, wanted, one.mcs, one.layers, one.shift_db, elements))
    return used


@inner
def grant(s: State, c: Config, f: int, quota: int, elements: int) -> int:
    """Serve a flow by itself; returns the PRBs used."""
    flow = s.flow[f]
    prbs = min(flow.need if flow.need > 0 else blocks_for(s, c, f, elements), quota)
    mcs, layers = flow.mcs, flow.layers
    if flow.direction == UP:
        mcs, layers = choose(s, c, f, prbs)
    return fill(s, c, f, prbs, mcs, layers, 0.0, elements)


@inner
def fill(s: State, c: Config, f: int, prbs: int, mcs: int, layers: int, shift_db: float, elements: int) -> int:
    """Fill a transport block of a flow and send it; returns the PRBs used.

    A device fills its grant with all it has, also with what the base station does not know of. Bytes that RLC
    sends again go first. A grant may find the queue empty, for it answers a scheduling request, or a buffer status
    report that named more than there was: the PRBs are spent all the same.
    """
    flow = s.flow[f]
    flow.metric = 0.0
    bits = block_bits(elements, prbs, mcs, layers)
    room = bits // 8 - BLOCK_OVERHEAD_BYTES
    if room <= 0 or not announce(s, c, f):
        return 0
    if flow.lost == 0 and flow.sent == flow.enqueued:
        flow.asked, flow.known = 0, flow.sent
        return int(prbs)
    b = new_block(s)
    if b == NONE:
        return 0
    flow.asked = 0
    if flow.lost > 0:
        start, end = lost_bytes(s, f, room)
    else:
        start, end = flow.sent, min(flow.sent + room, flow.enqueued)
        believed = flow.known - flow.sent
        flow.sent = end
        if flow.direction == UP and not c.configured:
            flow.known = end + max(believed - room, 0)
        granted(s, f, s.n[N.slot] * c.slot_s)
    flow.average += (end - start) / MEMORY
    block = s.block[b]
    block.flow, block.start, block.end, block.prbs, block.mcs, block.layers = f, start, end, prbs, mcs, layers
    block.bits = bits
    block.attempts, block.waited, block.snr, block.shift_db = 0, 0, 0.0, shift_db
    if flow.direction == UP:
        block.report = flow.sent + reported(s.levels, flow.enqueued - flow.sent)
    flow.processes += 1
    transmit(s, c, b)
    return int(prbs)


@inner
def lost_bytes(s: State, f: int, room: int) -> tuple[int, int]:
    """Take the first bytes that RLC is to send again, at most `room`, as [start, end)."""
    flow = s.flow[f]
    first = NONE
    b = flow.failed
    while b != NONE:
        due = s.block[b].kind == LOST_DUE
        if due and (first == NONE or s.block[b].start < s.block[first].start):
            first = b
        b = s.block[b].sibling
    block = s.block[first]
    start, end = block.start, min(block.start + room, block.end)
    block.start = end
    flow.lost -= end - start
    if block.start == block.end:
        remove_failed(s, first)
        free_block(s, first)
    return start, end
