"""One slot of the MAC: what every slice needs, the slice policy, and grants in order of proportional fair.

TS 38.321 5.4 (uplink grants), TS 28.541 4.3.36 (slices); needs.py has what flows want, charging.py who pays.
"""

from __future__ import annotations

from airserve.model import Array
from airserve.network.adaptation import EFFICIENCY, aggregation, block_bits, choose
from airserve.network.allocation import in_groups, whole
from airserve.network.buffers import (
    NONE,
    UP,
    Config,
    N,
    State,
    granted,
    new_block,
    waiting,
)
from airserve.network.channels import served, sole
from airserve.network.charging import charge, draw, fits, owe, pay
from airserve.network.configured import await_occasion, book
from airserve.network.harq import PROCESSES, give_up, happen, queue_resend, transmit
from airserve.network.jit import inner, njit
from airserve.network.needs import BLOCK_OVERHEAD_BYTES, MEMORY, blocks_for, demand, faded, fewest, free
from airserve.network.pairing import LAYERS, beside, candidate, gather, settle_shifts
from airserve.network.prioritisation import lost_bytes, multiplex
from airserve.network.slicing import allocate, forget, settle
from airserve.network.uplink import reported

PATIENCE = 20  # slots in which a retransmission may find no room before RLC cuts it anew


@inner
def step(s: State, c: Config) -> None:
    """Run one slot."""
    if s.n[N.events] > 0:
        happen(s, c)
    elements = s.pattern[s.n[N.slot] % s.pattern.size].elements
    for direction in range(2):
        if elements[direction] > 0 and s.n[N.active + direction] + s.n[N.resends + direction] > 0:
            schedule(s, c, direction, elements[direction])
    if s.n[N.due] != NONE:
        occasions(s, c, elements[UP])
    s.n[N.slot] += 1


@inner
def occasions(s: State, c: Config, elements: int) -> None:
    """Devices use the configured grants of this slot, unless another grant has come before (TS 38.321 5.4.1)."""
    k = s.n[N.due]
    s.n[N.due] = NONE
    while k != NONE:
        one, f = s.standing[k], k + c.ues
        k, one.awaited = one.next, 0
        flow = s.flow[f]
        link = s.flow[flow.link]
        if s.ue[flow.ue].accessing or flow.sent == flow.enqueued:
            continue
        if free(s, c, flow.link) and link.processes < PROCESSES:
            if flow.several:
                sole(s.channel, flow.group, one.prbs)
            used = fill(s, c, f, one.prbs, one.mcs, 1, 0.0, elements, True)
            s.prbs_used[flow.slice, UP] += used
        if flow.sent < flow.enqueued:
            await_occasion(s, c, f, s.n[N.slot] + 1)


@inner
def quiet(n: Array) -> bool:
    """Nothing to send and nothing awaited, by State.n: slots may be skipped."""
    return bool(n[N.events] + n[N.active] + n[N.active + 1] + n[N.resends] + n[N.resends + 1] == 0)


@njit
def schedule(s: State, c: Config, direction: int, elements: int) -> None:
    """Share the PRBs of a slot: what slices need, what the policy gives, retransmissions first, then the fairest."""
    slices = s.slices[direction]
    forget(slices, s.n[N.slot])
    for k in range(c.slices):
        slices[k].need, slices[k].waited_s = 0, 0.0
    b = s.n[N.resend + direction]
    while b != NONE:
        owe(s, c, slices, b)
        b = s.block[b].next
    for k in range(c.slices):
        slices[k].need += demand(s, c, direction, k, elements)
    books = direction == UP and s.booked.shape[0] > 0
    at = s.n[N.slot] % max(s.booked.shape[0], 1)
    if books:
        for k in range(c.slices):
            slices[k].need += s.booked[at, k]
    given = allocate(c.policy, slices, c.prbs)
    if c.group > 1:
        in_groups(slices, given, c.group, c.prbs)
    quota = given.copy()
    if books:
        book(given, s.booked[at], c.prbs)
        quota[:] = given - s.booked[at]
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
            crowded = c.together > 1 and slices[k].need > given[k]
            if s.flow[f].several and not crowded:
                serve(s, c, f, quota, elements)
                continue
            used = share(s, c, f, quota[k], elements) if crowded else grant(s, c, f, quota[k], elements)
            quota[k] -= used
            s.prbs_used[k, direction] += used
    settle(slices, given, quota)
    if direction != UP:
        busy = False
        for k in range(c.slices):
            busy |= quota[k] != given[k]
        s.n[N.sent] += busy


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
    if lead != NONE and announce(s, c, s.flow[s.block[lead].flow].link):
        flow = s.flow[s.flow[s.block[lead].flow].link]
        candidate(s, 0, s.flow[s.block[lead].flow].link, lead)
        together, streams, k, prbs = 1, s.block[lead].layers, s.flow[s.block[lead].flow].slice, s.block[lead].prbs
        flow.served = s.n[N.slot]
        quota[k] -= prbs
    following = s.n[N.resend + direction]
    s.n[N.resend + direction], s.n[N.resends + direction] = NONE, 0
    while following != NONE:
        b = following
        block = s.block[b]
        following = block.next
        f = s.flow[block.flow].link
        flow = s.flow[f]
        if together > 0 and b == lead:
            continue
        can = free(s, c, f)
        few = block.layers <= min(LAYERS[direction], c.together - streams)
        joins = can and together > 0 and few and s.flow[block.flow].slice == k and block.prbs <= prbs
        if joins and beside(s, c, f, b, together) and announce(s, c, f):
            flow.served = s.n[N.slot]
            together += 1
            streams += block.layers
            continue
        if can and fits(s, c, b, quota) and announce(s, c, f):
            pay(s, b, quota, direction)
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
def serve(s: State, c: Config, f: int, quota: Array, elements: int) -> None:
    """Serve a device with several channels by one grant, from what every slice in which it waits has left.

    What the device then puts in it is not the base station's to say: slices are charged by the bytes that went.
    """
    direction, prbs, g = s.flow[f].direction, 0, s.channel[f].first
    while g != NONE:
        flow = s.flow[g]
        s.channel[g].part = 0
        if flow.group == g and flow.metric > 0 and quota[flow.slice] > 0:
            need = flow.need if flow.need > 0 else blocks_for(s, c, g, elements)
            s.channel[g].part = min(need, quota[flow.slice], flow.most - prbs)
            prbs += s.channel[g].part
        g = s.channel[g].following
    mcs, layers = s.flow[f].mcs, s.flow[f].layers
    if direction == UP:
        mcs, layers = choose(s, c, f, prbs)
    draw(s, f, direction, quota, 1)
    if fill(s, c, f, prbs, mcs, layers, 0.0, elements) > 0:
        charge(s, f, direction)
    else:
        draw(s, f, direction, quota, -1)


@inner
def longest_waiting(s: State, c: Config, direction: int, quota: Array, given: Array) -> int:
    """Of the blocks of few layers to be sent again by crowded slices the one that has waited longest, or NONE."""
    found = NONE
    b = s.n[N.resend + direction]
    while b != NONE:
        block, k = s.block[b], s.flow[s.block[b].flow].slice
        few = block.layers <= LAYERS[direction] and block.prbs <= quota[k] and s.slices[direction, k].need > given[k]
        if few and free(s, c, s.flow[block.flow].link) and (found == NONE or block.waited > s.block[found].waited):
            found = b
        b = block.next
    return int(found)


@inner
def again(s: State, c: Config, b: int, shift_db: float) -> None:
    """Send a block once more."""
    served(s.flow, s.channel, s.block[b].flow)
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
        if s.flow[one.flow].several:
            sole(s.channel, one.flow, wanted)
        used = max(used, fill(s, c, one.flow, wanted, one.mcs, one.layers, one.shift_db, elements))
    return used


@inner
def average(s: State, f: int) -> None:
    """Count what the last block carried of each group of a device in its average of proportional fair."""
    slot, g = s.n[N.slot], s.channel[f].first
    while g != NONE:
        flow = s.flow[g]
        if flow.group == g:
            flow.average = flow.average * faded(slot - flow.averaged) + s.channel[g].went / MEMORY
            flow.averaged = slot
        g = s.channel[g].following


@inner
def grant(s: State, c: Config, f: int, quota: int, elements: int) -> int:
    """Serve a flow by itself; returns the PRBs used."""
    flow = s.flow[f]
    prbs = min(flow.need if flow.need > 0 else blocks_for(s, c, f, elements), quota)
    mcs, layers = flow.mcs, flow.layers
    if flow.direction == UP:
        mcs, layers = choose(s, c, f, prbs)
    if flow.several:
        sole(s.channel, f, prbs)
    return fill(s, c, f, prbs, mcs, layers, 0.0, elements)


@inner
def fill(
    s: State,
    c: Config,
    f: int,
    prbs: int,
    mcs: int,
    layers: int,
    shift_db: float,
    elements: int,
    standing: bool = False,  # a configured grant: nothing on the PDCCH
) -> int:
    """Fill a transport block of a flow and send it; returns the PRBs used.

    A device fills its grant with all it has, also with what the base station does not know of. Bytes that RLC
    sends again go first. A grant may find the queue empty, for it answers a scheduling request, or a buffer status
    report that named more than there was: the PRBs are spent all the same.
    """
    flow = s.flow[f]
    served(s.flow, s.channel, f)
    bits = block_bits(elements, prbs, mcs, layers)
    room = bits // 8 - BLOCK_OVERHEAD_BYTES
    if room <= 0 or not (standing or announce(s, c, f)):
        return 0
    if flow.several:
        used = multiplex(s, c, f, prbs, mcs, layers, shift_db, bits, room, f if standing else NONE)
        if used > 0:
            average(s, f)
        return int(used)
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
    block.attempts, block.waited, block.snr, block.shift_db, block.also = 0, 0, 0.0, shift_db, NONE
    if flow.direction == UP:
        block.report = flow.sent + reported(s.levels, flow.enqueued - flow.sent)
    flow.processes += 1
    transmit(s, c, b)
    return int(prbs)
