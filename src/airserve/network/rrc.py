"""Devices that are not there at once: RRC states, paging, random access with collisions, discontinuous reception.

TS 38.331 5.3 (states), TS 38.304 7.1 (paging), TS 38.321 5.1 (random access) and 5.7 (DRX). TR 37.910 5.7.2 has the
steps of random access. A device's state is worked out when something arrives for it, so that timers cost nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network import energy, frame, uplink
from airserve.network.buffers import (
    ACCESS,
    CONNECT,
    DOWN,
    NONE,
    RESOLVE,
    UE,
    UP,
    WAKE,
    Config,
    N,
    State,
    activate,
    later,
)
from airserve.network.cell import Cell
from airserve.network.channels import backlog, drained, sent_of
from airserve.network.generator import uniform
from airserve.network.jit import inner
from airserve.network.sleeping import rest

NEVER = 1 << 60
PREAMBLES = 54  # of 64: those for contention
RESOLVED_MS = {"4-step": 9.0, "2-step": 4.0}  # preamble to contention resolved: RAR, Msg3 and Msg4; or MsgB
CONTENTION_MS = 64.0  # timer after which a device that lost knows it, ra-ContentionResolutionTimer
BACKOFF_MS = 20.0  # at most, drawn evenly, before the next preamble; TS 38.321 Table 7.2-1
RESUME_MS = 10.0  # from inactive: a device works on RRCResume, TS 38.331 12
SETUP_MS = 50.0  # from idle: RRCSetup 10, service request, security and reconfiguration with the core


class Access(NamedTuple):
    """Numbers of a cell's RRC, in slots."""

    always_on: bool
    inactivity: int  # without traffic until a connection is released
    inactive: int  # from then in RRC_INACTIVE, until RRC_IDLE
    paging: int  # period
    prach: int  # period
    resolved: int
    contention: int
    backoff: int
    resume: int
    setup: int
    drx_inactivity: int  # without traffic until a device sleeps
    drx_cycle: int  # 0: no DRX
    drx_on: int
    soonest: int  # without traffic until a device sleeps for the first time
    deep: int  # from so long a sleep on it is deep
    light: int


def access(cell: Cell) -> Access:
    """Of a cell."""

    def slots(ms: float) -> int:
        return int(np.ceil(ms / cell.slot_ms - 1e-9))

    return Access(
        cell.always_on,
        slots(cell.inactivity_ms),
        slots(cell.inactive_ms),
        slots(cell.paging_cycle_ms),
        len(cell.symbols) * max(1, round(cell.prach_period_ms / cell.slot_ms / len(cell.symbols))),
        slots(RESOLVED_MS[cell.random_access]),
        slots(CONTENTION_MS),
        slots(BACKOFF_MS),
        slots(RESUME_MS),
        slots(SETUP_MS),
        slots(cell.drx_inactivity_ms),
        slots(cell.drx_cycle_ms),
        slots(cell.drx_on_ms),
        min(
            [slots(cell.drx_inactivity_ms)] * (cell.drx_cycle_ms > 0)
            + [slots(cell.inactivity_ms)] * (not cell.always_on)
            + [NEVER]
        ),
        *(slots(energy.DEVICE["transition_ms"][state]) for state in ("deep", "light")),
    )


def farthest(a: Access) -> int:
    """Slots ahead at which an event of a device may lie."""
    waits = max(a.paging, a.contention + a.backoff, a.setup, a.resolved, a.drx_cycle)
    return 0 if a.always_on and not a.drx_cycle else waits + 2 * a.prach


def devices(cell: Cell, ues: int, rng: np.random.Generator) -> Array:
    """Devices at the start, UE (ues,): connected, each with its own paging occasion and DRX offset."""
    a = access(cell)
    ue = np.zeros(ues, UE)
    ue["paging_offset"] = rng.integers(0, a.paging, ues)
    ue["drx_offset"] = rng.integers(0, max(1, a.drx_cycle), ues)
    return ue


def prach_slot(cell: Cell) -> int:
    """Of its period, the slot with the PRACH."""
    return int(np.flatnonzero(frame.carries(cell, "up"))[0])


@inner
def reachable(s: State, c: Config, f: int, empty: bool) -> bool:
    """Whether a device can be served at once with what has come to a flow; if not, see to it that it soon can.

    `empty`: nothing of the device waited in its direction before.
    """
    flow, a = s.flow[f], c.access
    ue, slot = s.ue[flow.ue], s.n[N.slot]
    if ue.accessing:
        return False
    other = f - c.ues if flow.direction == UP else f + c.ues
    quiet_for = slot - ue.active_at if empty and drained(s.flow, s.channel, other) else 0
    if not a.always_on and quiet_for > a.inactivity:
        ue.accessing, ue.asleep, ue.attempts = 1, 0, 0
        ue.preparing = a.resume if quiet_for <= a.inactivity + a.inactive else a.setup
        start = slot
        if flow.direction == DOWN:
            start += (ue.paging_offset - slot) % a.paging + 1
        ask(s, c, flow.ue, start)
        return False
    if a.drx_cycle > 0 and flow.direction == DOWN:
        into = (slot - ue.drx_offset) % a.drx_cycle
        if ue.asleep or (quiet_for > a.drx_inactivity and into >= a.drx_on):
            if not ue.asleep:
                ue.asleep = 1
                if not ue.noted:
                    ue.noted = 1
                    later(s, event(s, flow.ue), slot + a.drx_cycle - into, WAKE)
            return False
    stir(s, c, flow.ue)
    return True


@inner
def stir(s: State, c: Config, u: int) -> None:
    """A device is awake for its own traffic, and takes what waited for its next on-duration."""
    ue = s.ue[u]
    if s.n[N.slot] - ue.active_at > c.access.soonest:
        rest(c.access, s.ue, u, s.n[N.slot])
    ue.active_at = s.n[N.slot]
    if ue.asleep:
        ue.asleep = 0
        take_up(s, c, u, False)


@inner
def event(s: State, u: int) -> int:
    """The place among the blocks with which a device stands in the calendar."""
    return int(s.block.size - s.flow.size - s.ue.size + u)


@inner
def ask(s: State, c: Config, u: int, start: int) -> None:
    """Send a preamble at the first PRACH occasion from a slot on."""
    s.ue[u].noted = 1
    later(s, event(s, u), start + 1 + (c.prach_slot - start - 1) % c.access.prach, ACCESS)


@inner
def progress(s: State, c: Config, u: int, kind: int) -> None:
    """An event of a device's access, or the start of its on-duration."""
    ue, slot, a = s.ue[u], s.n[N.slot], c.access
    ue.noted = 0
    if kind == ACCESS:
        if ue.attempts == 0:
            rest(a, s.ue, u, slot)
            ue.active_at = slot
        ue.attempts += 1
        ue.collided = 0
        s.n[N.preambles] += 1
        which = s.preamble[int(uniform(s) * s.preamble.shape[0])]
        if which[0] == slot:
            ue.collided = s.ue[which[1]].collided = 1
        which[0], which[1] = slot, u
        ue.noted = 1
        later(s, event(s, u), slot + a.resolved, RESOLVE)
    elif kind == RESOLVE and ue.collided:
        s.n[N.collided] += 1
        ask(s, c, u, slot - a.resolved + a.contention + int(uniform(s) * (a.backoff + 1)))
    elif kind == RESOLVE:
        ue.noted = 1
        later(s, event(s, u), slot + ue.preparing, CONNECT)
    elif kind == CONNECT:
        ue.accessing, ue.active_at = 0, slot
        take_up(s, c, u, True)
    elif ue.asleep:
        stir(s, c, u)


@inner
def take_up(s: State, c: Config, u: int, connected: bool) -> None:
    """What waited for a device can be granted from now on; its last message of access reports its buffer."""
    for link in range(u, s.flow.size, c.ues):
        f = s.channel[link].first if s.flow[link].several else link
        while f != NONE:
            if s.flow[f].direction == DOWN or connected:
                take_up_flow(s, c, f, connected)
            f = s.channel[f].following if s.flow[f].several else NONE


@inner
def take_up_flow(s: State, c: Config, f: int, connected: bool) -> None:
    """As `take_up`, for one flow."""
    flow, waits = s.flow[f], backlog(s.flow, s.channel, s.flow[f].group)
    if flow.sent < flow.enqueued:
        if flow.direction != DOWN and not c.configured:
            waits = uplink.reported(s.levels, waits)
        s.flow[flow.group].known = sent_of(s.flow, s.channel, flow.group) + waits
        activate(s, f)
        r = flow.unsent
        while r != NONE:
            record = s.record[r]
            waited_s = s.n[N.slot] * c.slot_s - record.arrived_s
            if connected:
                record.access_s = waited_s
            else:
                record.asleep_s = waited_s
            r = record.next
