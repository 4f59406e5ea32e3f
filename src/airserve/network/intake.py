"""Bytes that come to a cell: appended to their flow, and announced where the base station cannot see them."""

from __future__ import annotations

import numpy as np

from airserve.network.buffers import (
    DOWN,
    NONE,
    REQUEST,
    Config,
    N,
    State,
    activate,
    later,
    uplink_slot_after,
    wire_bytes,
)
from airserve.network.jit import inner
from airserve.network.rrc import reachable


@inner
def enqueue(s: State, c: Config, f: int, nbytes: int, at_s: float, number: int) -> None:
    """Append a record to a flow in the slot about to be run; uplink: ask for a grant where nothing else will.

    A scheduling request is due when the buffer was empty (TS 38.321 5.4.5: a regular BSR and no UL-SCH resource).
    A device with a queue needs none: a request, a grant or a report of it is on its way.
    """
    flow = s.flow[f]
    r = s.n[N.free_record]
    record = s.record[r]
    s.n[N.free_record] = record.next
    record.id, record.ue, record.direction, record.nbytes = number, flow.ue, flow.direction, nbytes
    record.arrived_s, record.granted_s, record.delivered_s = at_s, np.nan, np.nan
    record.access_s, record.asleep_s = 0.0, 0.0
    record.start, record.end, record.next = flow.enqueued, flow.enqueued + wire_bytes(nbytes), NONE
    empty = flow.sent == flow.enqueued
    flow.enqueued = record.end
    if flow.head == NONE:
        flow.head = r
    else:
        s.record[flow.tail].next = r
    flow.tail = r
    if flow.unsent == NONE:
        flow.unsent = r
    if not reachable(s, c, f, empty):
        return
    if flow.direction == DOWN or c.configured:
        flow.known = flow.enqueued
        activate(s, f)
    elif empty and not flow.requesting and flow.asked == 0:
        request(s, c, f)


@inner
def request(s: State, c: Config, f: int) -> None:
    """Send a scheduling request at the flow's next opportunity; it is decoded one slot later."""
    flow = s.flow[f]
    wait = (flow.request_offset - s.n[N.slot]) % c.request_period
    flow.requesting = 1
    s.n[N.requests] += 1
    s.ue[flow.ue].pucch += 1
    later(s, s.block.size - s.flow.size + f, uplink_slot_after(s, s.n[N.slot] + wait + 1, c.k2), REQUEST)
