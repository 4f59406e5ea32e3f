"""How a device fills a grant from several logical channels: TS 38.321 5.4.3.1.3.

Each channel j is owed Bj bytes, which grow by its prioritised bit rate up to what its bucket holds. First all with
Bj > 0 are served in order of priority, as far as they are owed; what is left goes to them in strict order of priority.
A base station fills its downlink blocks in the same way, from the channels of each slice what that slice was given.
"""

from __future__ import annotations

from math import ceil, inf

from airserve.network.buffers import (
    LOST_DUE,
    NONE,
    OUTCOME,
    UP,
    Config,
    N,
    State,
    free_block,
    new_block,
    remove_failed,
)
from airserve.network.channels import backlog, sent_of
from airserve.network.harq import asks, transmit
from airserve.network.headers import BLOCK, PACKET, PACKET_BYTES
from airserve.network.jit import inner
from airserve.network.uplink import reported

SEGMENT_BYTES = BLOCK["segment"]  # of headers, for the first bytes of every further channel
WIRE_BYTES = PACKET_BYTES + sum(PACKET.values())  # of a full packet


@inner
def fill_buckets(s: State, f: int) -> None:
    """Let Bj of a device's channels grow up to this slot; nothing is allotted yet."""
    slot = s.n[N.slot]
    f = s.channel[f].first
    while f != NONE:
        one = s.channel[f]
        if one.rate == inf:
            one.bucket = inf
        else:
            one.bucket = min(one.bucket + one.rate * (slot - one.filled), one.most)
        one.filled, one.allotted, one.allowed = slot, 0, 1
        f = one.following


@inner
def open_bytes(s: State, f: int) -> int:
    """What a channel could still put in the grant that is being filled."""
    return int(s.flow[f].lost + s.flow[f].enqueued - s.flow[f].sent - s.channel[f].allotted)


@inner
def to_packets_end(s: State, f: int, wanted: int) -> int:
    """So many bytes of a channel, and the rest of the packet in which they end: it is not cut where it fits.

    What RLC sends again counts as one packet.
    """
    flow, one = s.flow[f], s.channel[f]
    if wanted <= flow.lost:
        return int(flow.lost)
    if wanted >= flow.lost + flow.enqueued - flow.sent:
        return int(flow.lost + flow.enqueued - flow.sent)
    last = flow.sent + wanted - flow.lost - 1
    start, end = one.cut_from, one.cut_to
    r = flow.unsent
    while end <= last:
        start, end = s.record[r].start, s.record[r].end
        r = s.record[r].next
    return int(flow.lost + min(start + ((last - start) // WIRE_BYTES + 1) * WIRE_BYTES, end) - flow.sent)


@inner
def give(s: State, f: int, nbytes: int, room: int, begun: bool) -> int:
    """Allot bytes to a channel, with headers of its own where another has begun the block; returns the room left."""
    one = s.channel[f]
    if begun and one.allotted == 0:
        room -= SEGMENT_BYTES
    nbytes = min(nbytes, open_bytes(s, f), room)
    if nbytes <= 0:
        return room + SEGMENT_BYTES if begun and one.allotted == 0 else room
    one.allotted += nbytes
    return room - nbytes


@inner
def allot(s: State, link: int, room: int, begun: bool) -> int:
    """Share room among those of a device's channels that are `allowed`, as `allotted`; returns what is left."""
    first = s.channel[link].first
    f = first
    while f != NONE:  # what they are owed
        one = s.channel[f]
        if one.bucket > 0 and one.allowed and open_bytes(s, f) > 0:
            waits = open_bytes(s, f)
            owed = waits if one.bucket >= waits else to_packets_end(s, f, ceil(one.bucket))
            room = give(s, f, owed, room, begun)
            one.bucket -= one.allotted if one.rate < inf else 0
            begun = begun or one.allotted > 0
        f = one.following
    f = first
    while f != NONE and room > 0:  # what is left, in strict order; those of one priority evenly
        after = f
        while after != NONE and s.channel[after].priority == s.channel[f].priority:
            after = s.channel[after].following
        while room > 0:
            sharing, g = 0, f
            while g != after:
                sharing += s.channel[g].allowed and open_bytes(s, g) > 0
                g = s.channel[g].following
            if sharing == 0:
                break
            each, before, g = max(room // sharing, 1), room, f
            while g != after:
                if s.channel[g].allowed:
                    room = give(s, g, each, room, begun)
                    begun = begun or s.channel[g].allotted > 0
                g = s.channel[g].following
            if room == before:  # none has room for its headers
                break
        f = after
    return room


@inner
def allow(s: State, f: int, group: bool) -> None:
    """Let only one of a device's channels use a grant, or only those of its group."""
    g = s.channel[f].first
    while g != NONE:
        s.channel[g].allowed = g == f or (group and s.flow[g].group == f)
        g = s.channel[g].following


@inner
def groups_waiting(s: State, f: int) -> int:
    """Groups of a flow's device that have bytes to send for the first time."""
    count, g = 0, s.channel[f].first
    while g != NONE:
        count += s.flow[g].group == g and backlog(s.flow, s.channel, g) > 0
        g = s.channel[g].following
    return count


@inner
def multiplex(
    s: State, c: Config, f: int, prbs: int, mcs: int, layers: int, shift_db: float, bits: int, room: int, only: int
) -> int:
    """Fill a grant of a device with several channels and send it; returns the PRBs used, or 0 where it has to wait.

    `only`: the channel that may use it, or NONE. `CHANNEL.part` says what of the PRBs each group was granted, and
    afterwards what its bytes took.
    """
    link, slot, first = s.flow[f].link, s.n[N.slot], s.channel[f].first
    direction, begun = s.flow[f].direction, False
    if nothing(s, f):
        return int(prbs)
    reports = direction == UP and not c.configured
    waiting = groups_waiting(s, f)
    if reports and waiting > 1:
        room -= 1 + waiting  # the report's long format
    fill_buckets(s, f)
    g = first
    while g != NONE:
        one = s.channel[g]
        if s.flow[g].group == g:
            one.went, share = 0, room * one.part // prbs
            one.believed = max(s.flow[g].known - sent_of(s.flow, s.channel, g) - share, 0)
            if direction != UP and share > 0:
                allow(s, g, True)
                begun = allot(s, link, share, begun) < share or begun
        g = one.following
    if direction == UP:
        if only != NONE:
            allow(s, only, False)
        allot(s, link, room, False)
    head = rows(s, f, reports, slot * c.slot_s)
    g = first
    while g != NONE:
        flow, one = s.flow[g], s.channel[g]
        if flow.group == g and one.part > 0:
            flow.asked = 0
        if flow.group == g and reports and (one.part > 0 or one.went > 0):
            flow.known = sent_of(s.flow, s.channel, g) + one.believed
        if flow.requesting > slot and reports and head != NONE:  # the report goes before it: TS 38.321 5.4.4
            flow.requesting = -flow.requesting
            asks(s, g, -1)
        g = one.following
    if head == NONE:
        return 0
    block = s.block[head]
    block.prbs, block.mcs, block.layers, block.bits = prbs, mcs, layers, bits
    block.attempts, block.waited, block.snr, block.shift_db = 0, 0, 0.0, shift_db
    by_bytes(s, head)
    s.flow[link].processes += 1
    transmit(s, c, head)
    return int(prbs)


@inner
def nothing(s: State, f: int) -> bool:
    """Whether a flow's device has nothing to send at all; the base station then knows it."""
    g, link = s.channel[f].first, s.flow[f].link
    while g != NONE:
        if open_bytes(s, g) + s.channel[g].allotted > 0:
            return False
        g = s.channel[g].following
    g = s.channel[link].first
    while g != NONE:
        flow = s.flow[g]
        if flow.group == g:
            flow.known = sent_of(s.flow, s.channel, g)
            if s.channel[g].part > 0:
                flow.asked = 0
        g = s.channel[g].following
    return True


@inner
def rows(s: State, f: int, reports: bool, at_s: float) -> int:
    """The block of what was allotted, or NONE: a row for each piece of a stream, and for each group reported."""
    head, tail, total = NONE, NONE, 0
    g = s.channel[f].first
    while g != NONE:
        flow, one = s.flow[g], s.channel[g]
        left = one.allotted
        while left > 0 and s.n[N.free_block] != NONE:
            b = new_block(s)
            row = s.block[b]
            if flow.lost > 0:
                row.start, row.end = lost_bytes(s, g, left)
            else:
                row.start, row.end = flow.sent, flow.sent + left
                flow.sent = row.end
                stamp(s, g, at_s)
            left -= row.end - row.start
            total += row.end - row.start
            s.channel[flow.group].went += row.end - row.start
            row.flow, row.also, row.report, row.kind = g, NONE, NONE, OUTCOME
            if head == NONE:
                head = b
            else:
                s.block[tail].also = b
            tail = b
        g = one.following
    if head == NONE or not reports:
        return head
    g = s.channel[f].first
    while g != NONE:
        if s.flow[g].group == g and s.n[N.free_block] != NONE:
            b = new_block(s)
            row = s.block[b]
            row.flow, row.also, row.start, row.end = g, NONE, s.flow[g].sent, s.flow[g].sent
            row.kind = OUTCOME
            sizes = s.levels if groups_waiting(s, f) < 2 else s.long_levels
            row.report = sent_of(s.flow, s.channel, g) + reported(sizes, backlog(s.flow, s.channel, g))
            s.block[tail].also = b
            tail = b
        g = s.channel[g].following
    return head


@inner
def stamp(s: State, f: int, at_s: float) -> None:
    """As `buffers.granted`, and remember the record that is cut."""
    flow, one = s.flow[f], s.channel[f]
    while flow.unsent != NONE and s.record[flow.unsent].start < flow.sent:
        record = s.record[flow.unsent]
        record.granted_s = at_s
        one.cut_from, one.cut_to = record.start, record.end
        flow.unsent = record.next


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


@inner
def by_bytes(s: State, b: int) -> None:
    """Write into `CHANNEL.part` what of a block's PRBs the bytes of each group take, to whole PRBs that add up."""
    f = s.block[b].flow
    g = s.channel[f].first
    while g != NONE:
        s.channel[g].part = 0
        g = s.channel[g].following
    total, row = 0, b
    while row != NONE:
        total += s.block[row].end - s.block[row].start
        row = s.block[row].also
    done, prbs, row = 0, s.block[b].prbs, b
    while row != NONE:
        after = done + s.block[row].end - s.block[row].start
        s.channel[s.flow[s.block[row].flow].group].part += prbs * after // total - prbs * done // total
        done, row = after, s.block[row].also
