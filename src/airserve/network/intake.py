"""Bytes that come to a cell: appended to their flow, and announced where the base station cannot see them."""

from __future__ import annotations

import numpy as np

from airserve.network.buffers import (
    DOWN,
    NONE,
    Config,
    N,
    State,
    activate,
    wire_bytes,
)
from airserve.network.channels import backlog, drained, outranks, sent_of
from airserve.network.configured import await_occasion, has_standing
from airserve.network.harq import asks, request
from airserve.network.jit import inner
from airserve.network.rrc import reachable


@inner
def enqueue(s: State, c: Config, f: int, nbytes: int, at_s: float, number: int) -> None:
    """Append a record to a flow in the slot about to be run; uplink: ask for a grant where nothing else will.

    A scheduling request is due when the buffer was empty, or had nothing of the same or a higher priority (TS 38.321
    5.4.5: a regular BSR and no UL-SCH resource). A device with a queue needs none else: a request, a grant or a report
    of it is on its way.
    """
    flow = s.flow[f]
    r = s.n[N.free_record]
    record = s.record[r]
    s.n[N.free_record] = record.next
    record.id, record.ue, record.direction, record.nbytes = number, f % c.ues, flow.direction, nbytes
    record.arrived_s, record.granted_s, record.delivered_s = at_s, np.nan, np.nan
    record.access_s, record.asleep_s = 0.0, 0.0
    record.start, record.end, record.next = flow.enqueued, flow.enqueued + wire_bytes(nbytes), NONE
    empty = flow.sent == flow.enqueued
    regular = empty
    if flow.several:
        empty, regular = drained(s.flow, s.channel, f), outranks(s.flow, s.channel, f)
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
    group = s.flow[flow.group]
    if flow.direction == DOWN or c.configured:
        group.known = sent_of(s.flow, s.channel, flow.group) + backlog(s.flow, s.channel, flow.group)
        activate(s, f)
    elif has_standing(s, c, f):
        await_occasion(s, c, f, s.n[N.slot])
    elif (empty or regular) and group.asked == 0:
        if group.requesting == 0:
            request(s, c, flow.group)
        elif -group.requesting > s.n[N.slot]:  # cancelled, and its opportunity is still to come
            group.requesting = -group.requesting
            asks(s, flow.group, 1)
