"""Transport blocks on their way: HARQ with chase combining, its timing, and what follows when it gives up.

TS 38.321 5.3.2 and 5.4.2 (HARQ), TS 38.213 9.2.3 (k1), TS 38.322 5.3.2 (RLC AM retransmission).
"""

from __future__ import annotations

from math import log10

from airserve.network.adaptation import bler_at, correct, sinr_db, snr_db
from airserve.network.buffers import (
    DOWN,
    LOST,
    LOST_DUE,
    NONE,
    OCCASION,
    OUTCOME,
    REPORT,
    REQUEST,
    RESEND,
    UP,
    Config,
    N,
    State,
    activate,
    add_failed,
    deliver,
    free_block,
    free_rows,
    later,
    remove_failed,
    uplink_slot_after,
)
from airserve.network.channels import backlog, sent_of
from airserve.network.configured import due
from airserve.network.generator import uniform
from airserve.network.jit import inner
from airserve.network.rrc import progress, stir

PROCESSES = 16  # of a device in a direction
MAX_ATTEMPTS = 4  # transmissions of a block before HARQ gives it up
K1_SLOTS = 4  # from PDSCH to its acknowledgement at the earliest
ROUNDING = 1e-9  # of a probability of error, from decibels to a ratio and back, with much to spare
RLC_DELAY_MS = 40.0  # until RLC sends again what HARQ gave up: t-Reassembly 35 ms and a status report


@inner
def transmit(s: State, c: Config, b: int) -> None:
    """Send a block in the slot being run; among other cells, how it is heard rests on what these send in it."""
    block = s.block[b]
    flow = s.flow[s.flow[block.flow].link]
    flow.served = s.n[N.slot]
    block.attempts += 1
    stir(s, c, flow.ue)
    if flow.direction == UP:
        account(s, c, b)
    if block.attempts == 1:
        block.sent = s.n[N.slot]
    if c.alone:
        receive(s, c, b, 0.0)
    else:
        block.next = s.n[N.air]
        s.n[N.air] = b


@inner
def acknowledges(s: State, u: int, slot: int) -> int:
    """Bits of the slots from one on in which a device will acknowledge what it has received."""
    ue = s.ue[u]
    ue.acks >>= min(slot - ue.acks_from, 62)
    ue.acks_from = slot
    return int(ue.acks)


@inner
def account(s: State, c: Config, b: int) -> None:
    """Count a PUSCH in the account of its device's energy; acknowledgements on it take no PUCCH (TS 38.213 9)."""
    block = s.block[b]
    flow = s.flow[block.flow]
    ue = s.ue[flow.ue]
    if flow.strength_db != flow.open_db:
        flow.strength, flow.strength_db = 10.0 ** (flow.open_db / 10) / c.prbs, flow.open_db
    ue.sent += 1
    ue.strength += min(flow.strength * block.prbs, 1.0)
    ue.pucch -= acknowledges(s, flow.ue, s.n[N.slot]) & 1


@inner
def receive(s: State, c: Config, b: int, rise_db: float) -> None:
    """Draw whether a block of the slot being run is decoded, deliver, and note when that is known.

    `rise_db`: interference and noise over noise.
    """
    block = s.block[b]
    f = s.flow[block.flow].link
    flow = s.flow[f]
    slot = s.n[N.slot]
    first = block.attempts == 1
    snr = snr_db(s, c, f, block.layers, slot) + block.shift_db - rise_db
    block.decoded = decoded(s, b, sinr_db(s, c, f, snr, block.prbs))
    s.n[N.blocks if first else N.resent] += 1
    if not block.decoded and first:
        s.n[N.failed] += 1
    row = b
    while row != NONE:
        if s.block[row].start < s.block[row].end:
            if not block.decoded and first:
                add_failed(s, row)
            elif block.decoded and not first:
                remove_failed(s, row)
            if block.decoded:
                deliver(s, s.block[row].flow, (slot + 1) * c.slot_s + c.decode_s)
        row = s.block[row].also
    if flow.direction == DOWN:
        feedback = slot + c.k1
        feedback += s.pattern[feedback % s.pattern.size].next_up
        later(s, b, feedback + 1, OUTCOME)
        ue, bit = s.ue[flow.ue], 1 << min(feedback - slot, 61)
        ue.heard += 1
        if acknowledges(s, flow.ue, slot) & bit == 0:
            ue.pucch += 1
            ue.acks |= bit
    else:
        later(s, b, slot + 1, OUTCOME)


@inner
def decoded(s: State, b: int, sinr_db: float) -> bool:
    """Draw whether a block is decoded with what is heard of it now and what was before.

    Most are at once: the sum is worked out only where it will be of use, or where rounding could tell in the draw.
    """
    block, drawn = s.block[b], uniform(s)
    if block.attempts == 1:
        lost = bler_at(sinr_db, block.mcs, block.bits)
        if drawn >= lost + ROUNDING:
            return True
    block.snr += 10.0 ** (sinr_db / 10)
    return bool(drawn >= bler_at(10.0 * log10(block.snr), block.mcs, block.bits))


@inner
def happen(s: State, c: Config) -> None:
    """All that the calendar has for the slot being run."""
    slot = s.n[N.slot]
    at = slot % s.calendar.size
    b = s.calendar[at]
    s.calendar[at] = NONE
    while b != NONE:
        following = s.block[b].next
        s.n[N.events] -= 1
        kind = s.block[b].kind
        if kind == OUTCOME:
            outcome(s, c, b, slot)
        elif kind == RESEND:
            queue_resend(s, b)
        elif kind == LOST:
            lose(s, b)
        elif kind == REPORT:
            learn(s, b)
            free_rows(s, b)
        elif kind == REQUEST:
            answer(s, c, s.block[b].flow)
        elif kind == OCCASION:
            due(s, s.block[b].flow)
        else:
            progress(s, c, s.block[b].flow, kind)
        b = following


@inner
def outcome(s: State, c: Config, b: int, slot: int) -> None:
    """The base station learns whether a block was decoded: by ACK (downlink), or by decoding it (uplink)."""
    block = s.block[b]
    flow = s.flow[s.flow[block.flow].link]
    if block.attempts == 1:
        correct(s, c, s.flow[block.flow].link, block.decoded)
    if block.decoded:
        flow.processes -= 1
        news = flow.several or block.report != flow.known
        if flow.direction == UP and not c.configured and news and block.sent > flow.heard:
            later(s, b, uplink_slot_after(s, slot, c.k2), REPORT)
        else:
            flow.heard = max(flow.heard, block.sent)
            free_rows(s, b)
    elif block.attempts >= MAX_ATTEMPTS:
        give_up(s, b, slot + c.rlc_delay)
    elif flow.direction == UP:
        later(s, b, uplink_slot_after(s, slot, c.k2), RESEND)
    else:
        queue_resend(s, b)


@inner
def learn(s: State, b: int) -> None:
    """A block's buffer status report has become of use for grants, unless a later one has."""
    block = s.block[b]
    link = s.flow[s.flow[block.flow].link]
    if block.sent <= link.heard:
        return
    link.heard = block.sent
    while b != NONE:
        f = s.block[b].flow
        if s.block[b].report != NONE:
            s.flow[f].known = s.block[b].report
            if s.flow[f].known > sent_of(s.flow, s.channel, f):
                activate(s, f)
        b = s.block[b].also


@inner
def answer(s: State, c: Config, f: int) -> None:
    """A scheduling request is heard, unless a report went before it; what came after that asks again."""
    flow = s.flow[f]
    cancelled = flow.requesting < 0
    flow.requesting = 0
    if not cancelled:
        flow.asked = c.request_bytes
        activate(s, f)
    elif backlog(s.flow, s.channel, f) > 0 and flow.known <= sent_of(s.flow, s.channel, f):
        request(s, c, f)


@inner
def request(s: State, c: Config, f: int) -> None:
    """Send a scheduling request at the flow's next opportunity; it is decoded one slot later."""
    flow = s.flow[f]
    wait = (flow.request_offset - s.n[N.slot]) % c.request_period
    flow.requesting = 1 + s.n[N.slot] + wait
    asks(s, f, 1)
    later(s, s.block.size - s.flow.size + f, uplink_slot_after(s, s.n[N.slot] + wait + 1, c.k2), REQUEST)


@inner
def asks(s: State, f: int, requests: int) -> None:
    """Count scheduling requests of a flow's device, fewer where one is cancelled."""
    s.n[N.requests] += requests
    s.ue[s.flow[f].ue].pucch += requests


@inner
def lose(s: State, b: int) -> None:
    """What a block held, RLC sends again from now on; its rows part."""
    while b != NONE:
        row = s.block[b]
        following, row.also = row.also, NONE
        if row.start < row.end:
            row.kind = LOST_DUE
            s.flow[row.flow].lost += row.end - row.start
            activate(s, row.flow)
        else:
            free_block(s, b)
        b = following


@inner
def queue_resend(s: State, b: int) -> None:
    """A block waits for PRBs for its retransmission."""
    direction = s.flow[s.block[b].flow].direction
    s.block[b].next = s.n[N.resend + direction]
    s.n[N.resend + direction] = b
    s.n[N.resends + direction] += 1


@inner
def give_up(s: State, b: int, slot: int) -> None:
    """HARQ leaves a block to RLC, which sends its bytes again, cut anew, from a slot on."""
    s.flow[s.flow[s.block[b].flow].link].processes -= 1
    s.n[N.given_up] += 1
    later(s, b, slot, LOST)
