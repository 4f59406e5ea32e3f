"""What the MAC holds: byte streams, transport blocks and records; the delivery in order of RLC AM, TS 38.322.

A flow is the byte stream of one device in one direction (flow = direction * ues + ue). Watermarks say how far it
has come: `enqueued` bytes came in, `sent` were put in transport blocks, `delivered` arrived in order. A record is
delivered when its last byte is. So segmentation and reordering cost nothing per byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network.channels import waiting_in_group
from airserve.network.headers import PACKET, PACKET_BYTES
from airserve.network.jit import inner, njit

DOWN, UP = 0, 1
NONE = -1

PACKET_OVERHEAD_BYTES = sum(PACKET.values())

# What a transport block waits for; the kind of its next event
OUTCOME, RESEND, REPORT, LOST, REQUEST = 0, 1, 2, 3, 4
ACCESS, RESOLVE, CONNECT, WAKE = 6, 7, 8, 9  # of a device, not of a block: see rrc.py
OCCASION = 10  # of a configured grant
LOST_DUE = 5  # no event: its bytes wait for a grant

FLOW = np.dtype(
    [
        ("ue", "i8"),
        ("direction", "i8"),
        ("slice", "i8"),
        ("link", "i8"),  # flow that holds radio and HARQ of its device's channels; these three: channels.py
        ("group", "i8"),  # flow that stands for its channel group
        ("several", "i8"),  # its device has more than one channel
        ("enqueued", "i8"),
        ("sent", "i8"),
        ("delivered", "i8"),
        ("known", "i8"),  # how far the base station may grant from now on; up: by buffer status reports
        ("heard", "i8"),  # up: slot in which the newest report was sent that the base station uses
        ("asked", "i8"),  # up: bytes to grant for a scheduling request
        ("requesting", "i8"),  # up: 1 + slot of a scheduling request that is on its way; below 0: cancelled
        ("lost", "i8"),  # bytes that HARQ gave up and RLC sends again
        ("processes", "i8"),  # HARQ processes in use
        ("served", "i8"),  # slot of its last transmission
        ("active", "i8"),  # stands in the list of its slice
        ("next", "i8"),  # in that list
        ("request_offset", "i8"),  # up: slot of its scheduling request in the period
        ("head", "i8"),  # first record not delivered
        ("tail", "i8"),
        ("unsent", "i8"),  # first record of which no byte was sent
        ("failed", "i8"),  # list of the blocks not decoded
        ("row", "i8"),  # of the radio trace
        ("open_db", "f8"),  # up: power of a PRB by open-loop control, against full power over the carrier
        ("offset", "f8"),  # in the radio trace, in snapshots
        ("shift_db", "f8"),  # of its serving cell's link against that of the trace
        ("rise_db", "f8"),  # interference and noise over noise, as of the last report
        ("report", "i8"),  # slot to which the last CQI report applies
        ("mcs", "i8"),  # chosen for a grant of all that it can have
        ("layers", "i8"),
        ("olla_db", "f8"),  # outer loop's correction of the reported SNR
        ("chosen_db", "f8"),  # the correction for which mcs and layers were chosen
        ("average", "f8"),  # bytes a slot, exponentially weighted, at slot `averaged`
        ("averaged", "i8"),
        ("need", "i8"),  # PRBs, in this slot
        ("needed", "i8"),  # PRBs that `needed_bytes` would fill on `needed_elements` a PRB, worked out before
        ("needed_bytes", "i8"),  # NONE: not known for this report
        ("needed_elements", "i8"),
        ("metric", "f8"),  # proportional fair, in this slot
        # What the device can (equipment.py):
        ("most", "i8"),  # PRBs of a grant
        ("mcs_first", "i8"),  # of the MCS of link.ALL_QM those of its table
        ("mcs_last", "i8"),
        ("antennas", "i8"),  # that receive
        ("half", "i8"),  # 1: it does not send while it receives
        ("strength", "f8"),  # up: power of a PRB by open-loop control, of 23 dBm, for an `open_db` of
        ("strength_db", "f8"),
    ],
    align=True,
)
BLOCK = np.dtype(
    [
        ("flow", "i8"),
        ("start", "i8"),  # bytes [start, end) of the stream
        ("end", "i8"),
        ("attempts", "i8"),
        ("prbs", "i8"),
        ("mcs", "i8"),
        ("layers", "i8"),
        ("bits", "i8"),  # of the transport block, padding included
        ("snr", "f8"),  # linear, summed over the attempts: chase combining
        ("shift_db", "f8"),  # of the next attempt's SNR, by others on the same PRBs
        ("decoded", "i8"),
        ("report", "i8"),  # up: buffer status report, as an end in the stream
        ("sent", "i8"),  # slot of its first transmission
        ("waited", "i8"),  # slots in which a retransmission found no room
        ("kind", "i8"),
        ("next", "i8"),  # in the calendar, among the retransmissions, or among the free
        ("sibling", "i8"),  # in the flow's list of failed blocks
        ("also", "i8"),  # a row with more bytes of the same block, of another channel; NONE: that is all
    ],
    align=True,
)
RECORD = np.dtype(
    [
        ("id", "i8"),
        ("ue", "i8"),
        ("direction", "i8"),
        ("nbytes", "i8"),
        ("arrived_s", "f8"),
        ("granted_s", "f8"),
        ("delivered_s", "f8"),
        ("access_s", "f8"),  # waited for paging and random access
        ("asleep_s", "f8"),  # waited for an on-duration
        ("start", "i8"),  # in the stream, overheads included
        ("end", "i8"),
        ("next", "i8"),  # in its flow, among the delivered, or among the free
    ],
    align=True,
)
UE = np.dtype(  # a device as RRC sees it
    [
        ("active_at", "i8"),  # slot of its last traffic
        ("accessing", "i8"),  # being paged, or in random access
        ("preparing", "i8"),  # slots from there to its connection
        ("attempts", "i8"),  # preambles of this access
        ("collided", "i8"),  # the last of them
        ("paging_offset", "i8"),
        ("drx_offset", "i8"),
        ("asleep", "i8"),  # something waits for its next on-duration
        ("noted", "i8"),  # stands in the calendar
        # For the account of its energy (energy.py):
        ("heard", "i8"),  # slots with a PDSCH
        ("sent", "i8"),  # slots with a PUSCH
        ("strength", "f8"),  # sum over these of its power, of 23 dBm
        ("pucch", "i8"),  # slots with a PUCCH and no PUSCH
        ("acks", "i8"),  # bits: slots in which it will acknowledge, from `acks_from` on
        ("acks_from", "i8"),
        ("rest", "i8", (5,)),  # sleeping.py
    ],
    align=True,
)


class Numbers(NamedTuple):
    """Places in `State.n`; lists are linked by `next` and start here."""

    slot: int = 0  # the next to be run
    random: int = 1  # state of the generator
    free_block: int = 2  # list
    free_record: int = 3  # list
    done_first: int = 4  # list of the records delivered and not yet taken
    done_last: int = 5
    done: int = 6  # how many these are
    events: int = 7  # in the calendar
    active: int = 8  # flows with something to grant, by direction
    resends: int = 10  # HARQ retransmissions waiting, by direction
    resend: int = 12  # lists of them, by direction
    blocks: int = 14  # first transmissions, ever
    failed: int = 15  # of these not decoded at once
    resent: int = 16  # HARQ retransmissions
    given_up: int = 17  # blocks that HARQ gave up and RLC sent again
    requests: int = 18  # scheduling requests
    cces: int = 19  # control channel elements left for grants, in this slot and direction
    preambles: int = 20  # sent, ever
    collided: int = 21  # of these, with another's
    air: int = 22  # list of the blocks sent in this slot, where other cells decide how they are heard
    sent: int = 23  # slots with a PDSCH
    due: int = 24  # list of the configured grants whose occasion is in this slot
    size: int = 25


N = Numbers()


class Config(NamedTuple):
    """Numbers of a cell that stay as they are during a run; times in slots unless named otherwise."""

    ues: int
    slices: int
    prbs: int
    group: int  # PRBs of which a grant is a multiple
    alone: bool  # no other cell is there: a block is heard as soon as it is sent
    slot_s: float
    policy: int  # address of the slice policy's code
    configured: bool  # uplink without scheduling requests and reports
    k1: int
    k2: int
    request_period: int
    request_bytes: int
    target_bler: float
    report_period: int
    report_delay: int
    snapshot: float  # of the radio trace
    together: int  # most devices on the same PRBs
    rlc_delay: int
    cces: tuple[int, int]  # control channel elements for the grants of a slot, by direction
    access: Any  # rrc.Access
    prach_slot: int
    prepare_s: float  # processing before a transmission
    decode_s: float  # and after it


class State(NamedTuple):
    """All that changes in a run, as few arrays, so that one compiled call can run through it."""

    n: Array  # int64 (Numbers.size,)
    flow: Array  # FLOW (2 * ues,)
    block: Array  # BLOCK (blocks + 3 * ues,): the last are events of devices (ues) and requests of flows (2 * ues)
    record: Array  # RECORD (records,)
    calendar: Array  # int64 (slots,): list of the blocks with an event in a slot, a ring
    active: Array  # int64 (2, slices): list of the flows with something to grant
    slices: Array  # slicing.SLICE (2, slices): by direction, what the slice policy sees
    pattern: Array  # frame.SLOT (slots of the pattern,)
    ue: Array  # UE (ues,)
    preamble: Array  # int64 (preambles, 2): slot in which it was last sent, and by whom
    levels: Array  # int64: of buffer status reports, none where they are exact
    long_levels: Array  # int64: of reports of several channel groups
    channel: Array  # channels.CHANNEL (2 * ues,), or empty where no device has several
    standing: Array  # configured.STANDING (ues,): configured grants, or empty
    booked: Array  # int64 (slots until all repeats, slices): PRBs of configured grants; no rows: none
    snr_db: Array  # float32 (2, rows, snapshots, layers), by direction
    reported_db: Array  # float64 (2 * ues, layers): SNR of a flow's last report
    whole_db: Array  # float64 (2 * ues, layers): the SINR that follows for a grant of the whole band
    beams: Any  # pairing.Beams
    candidate: Array  # pairing.CANDIDATE (candidates,): to share PRBs, of the group being made
    prbs_used: Array  # int64 (slices, 2)
    nbytes: Array  # int64 (slices, 2), delivered, without overheads


@njit
def wire_bytes(nbytes: int) -> int:
    """Bytes on the radio of a record: with the headers of its packets.

    >>> wire_bytes(200), wire_bytes(2800)
    (250, 2900)
    """
    return nbytes + PACKET_OVERHEAD_BYTES * ((nbytes + PACKET_BYTES - 1) // PACKET_BYTES)


@njit
def visible_slot(c: Config, at_s: float) -> int:
    """First slot that can carry what arrives at a time: it waits for the next boundary, processing included."""
    return int(np.ceil((at_s + c.prepare_s) / c.slot_s - 1e-9))


@inner
def uplink_slot_after(s: State, slot: int, k2: int) -> int:
    """First slot whose PUSCH a grant of `slot`, or of the next slot with a downlink, can reach: TS 38.214 6.1.2.1."""
    slot += s.pattern[slot % s.pattern.size].next_down + k2
    return int(slot + s.pattern[slot % s.pattern.size].next_up)


@inner
def later(s: State, b: int, slot: int, kind: int) -> None:
    """Note an event of a block in the calendar."""
    block = s.block[b]
    block.kind = kind
    at = slot % s.calendar.size
    block.next = s.calendar[at]
    s.calendar[at] = b
    s.n[N.events] += 1


@inner
def waiting(s: State, f: int) -> int:
    """Bytes of a flow that may be granted: what is known of, what RLC sends again, and what a request asks for."""
    flow = s.flow[f]
    if flow.several:
        return waiting_in_group(s.flow, s.channel, f)
    return int(max(max(flow.known - flow.sent, 0) + flow.lost, flow.asked))


@inner
def activate(s: State, f: int) -> None:
    """Put a flow's group in the list of its slice, unless it stands there."""
    f = s.flow[f].group
    flow = s.flow[f]
    if not flow.active:
        flow.active = 1
        flow.next = s.active[flow.direction, flow.slice]
        s.active[flow.direction, flow.slice] = f
        s.n[N.active + flow.direction] += 1


@inner
def new_block(s: State) -> int:
    """A transport block from the pool, or NONE when all are in flight (the flow waits)."""
    b = s.n[N.free_block]
    if b != NONE:
        s.n[N.free_block] = s.block[b].next
    return int(b)


@inner
def free_block(s: State, b: int) -> None:
    s.block[b].next = s.n[N.free_block]
    s.n[N.free_block] = b


@inner
def free_rows(s: State, b: int) -> None:
    """Free all rows of a block."""
    while b != NONE:
        following = s.block[b].also
        free_block(s, b)
        b = following


@inner
def add_failed(s: State, b: int) -> None:
    """Hold back a flow's delivery at a block."""
    flow = s.flow[s.block[b].flow]
    s.block[b].sibling = flow.failed
    flow.failed = b


@inner
def remove_failed(s: State, b: int) -> None:
    flow = s.flow[s.block[b].flow]
    if flow.failed == b:
        flow.failed = s.block[b].sibling
        return
    at = flow.failed
    while s.block[at].sibling != b:
        at = s.block[at].sibling
    s.block[at].sibling = s.block[b].sibling


@inner
def granted(s: State, f: int, at_s: float) -> None:
    """Stamp the records whose first byte has now been sent."""
    flow = s.flow[f]
    while flow.unsent != NONE and s.record[flow.unsent].start < flow.sent:
        s.record[flow.unsent].granted_s = at_s
        flow.unsent = s.record[flow.unsent].next


@inner
def deliver(s: State, f: int, at_s: float) -> None:
    """Move the watermark up to the first byte that is missing and complete the records below it."""
    flow = s.flow[f]
    reached = flow.sent
    b = flow.failed
    while b != NONE:
        reached = min(reached, s.block[b].start)
        b = s.block[b].sibling
    flow.delivered = reached
    while flow.head != NONE and s.record[flow.head].end <= reached:
        r = flow.head
        s.record[r].delivered_s = at_s
        s.nbytes[flow.slice, flow.direction] += s.record[r].nbytes
        flow.head = s.record[r].next
        s.record[r].next = NONE
        if s.n[N.done] == 0:
            s.n[N.done_first] = r
        else:
            s.record[s.n[N.done_last]].next = r
        s.n[N.done_last] = r
        s.n[N.done] += 1


@inner
def take_done(s: State) -> int:
    """The first of the delivered records; its place is free at once and keeps its data until the next `enqueue`."""
    r = s.n[N.done_first]
    s.n[N.done_first] = s.record[r].next
    s.n[N.done] -= 1
    s.record[r].next = s.n[N.free_record]
    s.n[N.free_record] = r
    return int(r)
