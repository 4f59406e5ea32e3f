"""From cell to cell: event A3 (TS 38.331 5.5.4.4), what a handover does to bytes in flight, failures, ping-pong.

What a device measures is the long-term loss to each cell, every 40 ms; fading is averaged out. At a handover the MAC is
reset: blocks that were not yet decoded go to RLC, which sends their bytes in the new cell (TS 38.321 5.12, TS 38.323
5.4: lossless). A device whose SINR is below Qout then has not heard the command: it finds the best cell itself.
"""

from __future__ import annotations

from math import log10
from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network import uplink
from airserve.network.adaptation import snr_db
from airserve.network.buffers import (
    DOWN,
    LOST_DUE,
    NONE,
    REPORT,
    Config,
    N,
    State,
    activate,
    free_block,
)
from airserve.network.cell import Cell
from airserve.network.interference import Air, down_over_noise
from airserve.network.jit import inner
from airserve.network.mobility import Walk, go, look_up
from airserve.network.needs import deactivate

MEASURED_MS = 40.0  # from one measurement to the next
QOUT_DB = -8.0  # TR 36.839 5.2.1.3: out of synchronisation
REESTABLISH_MS = 200.0  # beyond the interruption, after a handover that failed; an assumption of ours
STAY_MS = 1000.0  # back in the cell that it left within this time: ping-pong, TR 36.839 5.2.1.4
NEVER = 1 << 62
MADE, FAILED, PING_PONG = range(3)


class Rules(NamedTuple):
    """Numbers of handovers; times in slots."""

    period: int
    trigger: int
    offset_db: float
    hysteresis_db: float
    interruption: int
    reestablish: int
    stay: int
    alpha: float
    at_0_db: float  # a cell's transmission over a device's noise, were there no loss


class Devices(NamedTuple):
    """Devices as those see them who move them. Nothing is ever done where `next_slot` is NEVER."""

    next_slot: Array  # int64 (1,): of the next measurement
    away: Array  # int64 (1 + ues,): how many devices are between cells, and which
    until: Array  # int64 (ues,): when these arrive
    loss_db: Array  # float64 (ues, cells)
    own_loss_db: Array  # float64 (ues,): of the trace's own link
    own_open_db: Array  # float64 (ues,): FLOW.open_db over that link
    since: Array  # int64 (ues, cells): slot from which a neighbour has been better, or NONE
    left: Array  # int64 (ues, 2): cell before this one, and the slot in which it was left
    books: Array  # int64 (cells, 3): by the cell left, MADE, FAILED, PING_PONG
    walk: Walk


def rules(cell: Cell, at_0_db: float) -> Rules:
    """Of a cell."""

    def slots(ms: float) -> int:
        return int(np.ceil(ms / cell.slot_ms - 1e-9))

    return Rules(
        slots(MEASURED_MS),
        slots(cell.time_to_trigger_ms),
        cell.handover_offset_db,
        cell.handover_hysteresis_db,
        slots(cell.interruption_ms),
        slots(REESTABLISH_MS),
        slots(STAY_MS),
        cell.alpha,
        at_0_db,
    )


@inner
def better(r: Rules, loss_db: Array, own: int, since: Array, slot: int) -> int:
    """The strongest neighbour for which event A3 has held for the time to trigger, or NONE.

    A3 begins when Mn - Hys > Mp + Off and ends when Mn + Hys < Mp + Off.
    """
    target = NONE
    for k in range(loss_db.size):
        gain_db = loss_db[own] - loss_db[k]
        if k == own or gain_db + r.hysteresis_db < r.offset_db:
            since[k] = NONE
        elif gain_db - r.hysteresis_db > r.offset_db and since[k] == NONE:
            since[k] = slot
        held = since[k] != NONE and slot - since[k] >= r.trigger
        if held and (target == NONE or loss_db[k] < loss_db[target]):
            target = k
    return target


@inner
def walk_on(s: State, c: Config, a: Air, r: Rules, d: Devices, ue: int) -> None:
    """Move a device for a period, and its losses with it."""
    go(d.walk, ue, r.period * c.slot_s)
    look_up(d.walk.ground, d.walk.place_m[ue, 0], d.walk.place_m[ue, 1], d.loss_db[ue])
    for k in range(d.loss_db.shape[1]):
        a.over_noise[ue, k] = 10.0 ** ((r.at_0_db - d.loss_db[ue, k]) / 10)
    tune(s, c, a, r, d, ue)


@inner
def tune(s: State, c: Config, a: Air, r: Rules, d: Devices, ue: int) -> None:
    """A device's link is that to its serving cell."""
    shift_db = d.own_loss_db[ue] - d.loss_db[ue, a.cell[ue]]
    for f in (ue, c.ues + ue):
        s.flow[f].shift_db = shift_db
        s.flow[f].open_db = d.own_open_db[ue] - r.alpha * shift_db


@inner
def busy(s: State, ue: int) -> bool:
    """In random access, being paged, or asleep until an on-duration: no time for a handover."""
    return bool(s.ue[ue].accessing or s.ue[ue].noted)


@inner
def released(s: State, c: Config, ue: int, slot: int) -> bool:
    """Without a connection: the device chooses its cell itself, and nobody notices."""
    down, up = s.flow[ue], s.flow[c.ues + ue]
    silent = down.sent == down.enqueued and up.sent == up.enqueued and down.lost + up.lost == 0
    return bool(not c.access.always_on and silent and slot - s.ue[ue].active_at > c.access.inactivity)


@inner
def go_over(s: State, c: Config, a: Air, r: Rules, d: Devices, ue: int, target: int) -> None:
    """Take a device out of its cell, whose state is given, and send it to another."""
    own, slot = a.cell[ue], s.n[N.slot]
    for k in range(d.since.shape[1]):
        d.since[ue, k] = NONE
    if not released(s, c, ue, slot):
        sinr = snr_db(s, c, ue, 1, slot) - 10.0 * log10(1.0 + down_over_noise(a, a.load, ue))
        d.until[ue] = slot + r.interruption
        if sinr < QOUT_DB:
            d.books[own, FAILED] += 1
            d.until[ue] += r.reestablish
            target = int(np.argmin(d.loss_db[ue]))
        else:
            d.books[own, MADE] += 1
            if d.left[ue, 0] == target and slot - d.left[ue, 1] <= r.stay:
                d.books[own, PING_PONG] += 1
        d.left[ue, 0], d.left[ue, 1] = own, slot
        s.ue[ue].accessing = 1
        d.away[0] += 1
        d.away[d.away[0]] = ue
    withdraw(s, ue)
    withdraw(s, c.ues + ue)
    a.cell[ue] = target
    tune(s, c, a, r, d, ue)


@inner
def withdraw(s: State, f: int) -> None:
    """Take all that a cell has of a flow out of its lists: what was not decoded is RLC's to send again."""
    flow = s.flow[f]
    if flow.active:
        before, at = NONE, s.active[flow.direction, flow.slice]
        while at != f:
            before, at = at, s.flow[at].next
        deactivate(s, f, before)
    b, before = s.n[N.resend + flow.direction], NONE
    while b != NONE:
        following = s.block[b].next
        if s.block[b].flow == f:
            if before == NONE:
                s.n[N.resend + flow.direction] = following
            else:
                s.block[before].next = following
            s.n[N.resends + flow.direction] -= 1
            to_rlc(s, b)
        else:
            before = b
        b = following
    pool, request = s.block.size - s.flow.size - s.ue.size, s.block.size - s.flow.size + f
    for at in range(s.calendar.size):
        b, before = s.calendar[at], NONE
        while b != NONE:
            following = s.block[b].next
            if b == request or (b < pool and s.block[b].flow == f):
                if before == NONE:
                    s.calendar[at] = following
                else:
                    s.block[before].next = following
                s.n[N.events] -= 1
                if b != request:
                    to_rlc(s, b)
            else:
                before = b
            b = following
    flow.processes, flow.asked, flow.requesting, flow.olla_db = 0, 0, 0, 0.0
    flow.heard, flow.report, flow.needed_bytes = s.n[N.slot], NONE, NONE
    flow.known = flow.sent


@inner
def to_rlc(s: State, b: int) -> None:
    """A block whose HARQ process has ended."""
    block = s.block[b]
    if block.decoded or block.kind == REPORT:
        free_block(s, b)
    else:
        block.kind = LOST_DUE
        s.flow[block.flow].lost += block.end - block.start


@inner
def arrive(s: State, c: Config, ue: int) -> None:
    """A device is in its new cell, whose state is given: what waited for it can be granted."""
    s.ue[ue].accessing, s.ue[ue].active_at = 0, s.n[N.slot]
    for f in (ue, c.ues + ue):
        flow = s.flow[f]
        left = flow.enqueued - flow.sent
        flow.known = flow.enqueued if flow.direction == DOWN or c.configured else flow.sent
        if left > 0 and flow.known == flow.sent:
            flow.known += uplink.reported(s.levels, left)
        if left > 0 or flow.lost > 0:
            activate(s, f)
