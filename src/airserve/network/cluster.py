"""Several cells that advance together, slot by slot: each schedules, then all is heard through all.

What belongs to devices (flows, blocks, records) is held once, so that a device takes its bytes along from cell to
cell; what belongs to cells (calendar, lists, books) has a row for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network import association, handover, mobility, radio, uplink
from airserve.network.buffers import BLOCK, DOWN, NONE, UP, Config, N, State, visible_slot
from airserve.network.channels import Belonging, Channel
from airserve.network.equipment import outfit
from airserve.network.harq import happen as outcomes
from airserve.network.intake import enqueue
from airserve.network.interference import BINS, REPORTS, Air, forget, heard, measure, report, sent
from airserve.network.jit import inner, njit
from airserve.network.lending import lend, owned
from airserve.network.mac import Grant, MacError, config_of, state_of
from airserve.network.passage import M, World, begin, delivered, happen
from airserve.network.scheduler import quiet, schedule
from airserve.network.topology import Network

BLOCKS = 1024  # transport blocks in flight for which every cell has room


class Cluster(NamedTuple):
    """Cells with their devices."""

    n: Array  # int64 (cells, Numbers.size)
    calendar: Array  # int64 (cells, slots)
    active: Array  # int64 (cells, 2, slices)
    slices: Array  # slicing.SLICE (cells, 2, slices)
    preamble: Array  # int64 (cells, preambles, 2)
    prbs_used: Array  # int64 (cells, slices, 2)
    nbytes: Array  # int64 (cells, slices, 2)
    whole: State  # what they share
    free: Array  # int64 (2,): lists of the blocks and records that are free
    air: Air
    rules: handover.Rules
    devices: handover.Devices
    counts: Array  # int64 (marks, cells, 2, 2): PRBs and bytes by direction, at every mark


@inner
def cell(t: Cluster, k: int) -> State:
    """One of the cells, as the steps of a slot know it: its arrays are borrowed, so only `inner` functions may call."""
    w = t.whole
    return State(
        t.n[k], w.flow, w.block, w.record, t.calendar[k], t.active[k], t.slices[k], w.pattern, w.ue, t.preamble[k],
        w.levels, w.long_levels, w.channel, w.standing, w.booked, w.snr_db, w.reported_db, w.whole_db, owned(w.beams),
        w.candidate, t.prbs_used[k], t.nbytes[k],
    )  # fmt: skip


@inner
def take(t: Cluster, s: State) -> None:
    """A cell takes blocks and records from what is free in all."""
    s.n[N.free_block], s.n[N.free_record] = t.free[0], t.free[1]


@inner
def leave(t: Cluster, s: State) -> None:
    t.free[0], t.free[1] = s.n[N.free_block], s.n[N.free_record]


@njit
def simulate(cluster: Cluster, config: Config, world: World, rules: Array, end: int) -> None:
    """As `passage.simulate`, for all cells."""
    t, c, w = lend(cluster), lend(config), lend(world)
    cells = t.n.shape[0]
    while w.n[M.closed] < w.asked.size and t.n[0, N.slot] < end:
        slot = t.n[0, N.slot]
        note(t, w, slot)
        while w.n[M.sent] < w.asked.size and visible_slot(c, w.asked[w.n[M.sent]].ready_s) <= slot:
            begin(c, w, rules, w.n[M.sent])
            w.n[M.sent] += 1
            flush(t, c, w)
        while w.n[M.events] > 0 and visible_slot(c, w.event[w.heap[0]].at_s) <= slot:
            happen(w, rules)
            flush(t, c, w)
        if still(t) and t.devices.away[0] == 0 and slot < t.devices.next_slot[0]:
            nearest = end if w.n[M.sent] == w.asked.size else visible_slot(c, w.asked[w.n[M.sent]].ready_s)
            if w.n[M.events] > 0:
                nearest = min(nearest, visible_slot(c, w.event[w.heap[0]].at_s))
            nearest = min(nearest, t.devices.next_slot[0])
            for k in range(cells):
                t.n[k, N.slot] = min(nearest, end)
            continue
        step(t, c)
        collect(t, w, rules)


@inner
def step(t: Cluster, c: Config) -> None:
    """Run one slot of all cells: all schedule, then all is heard."""
    cells, slot = t.n.shape[0], t.n[0, N.slot]
    elements = t.whole.pattern[slot % t.whole.pattern.size].elements
    move(t, c, slot)
    report(t.whole, c, t.air, slot)
    for k in range(cells):
        t.air.load[k] *= elements[DOWN] == 0
        t.air.heard[k] *= elements[UP] == 0
    for k in range(cells):
        if quiet(t.n[k]):
            continue
        s = lend(cell(t, k))
        take(t, s)
        if s.n[N.events] > 0:
            outcomes(s, c)
        before = prbs_down(t, k)
        for direction in range(2):
            if elements[direction] > 0 and s.n[N.active + direction] + s.n[N.resends + direction] > 0:
                schedule(s, c, direction, elements[direction])
        t.air.load[k] += (prbs_down(t, k) - before) / c.prbs  # several devices on the same PRBs divide their power
        sent(s, c, t.air, k)
        leave(t, s)
    measure(c, t.air, slot)
    for k in range(cells):
        if t.n[k, N.air] != NONE:
            s = lend(cell(t, k))
            take(t, s)
            heard(s, c, t.air, k)
            leave(t, s)
        t.n[k, N.slot] += 1


@inner
def prbs_down(t: Cluster, k: int) -> int:
    """PRBs that a cell has sent on so far."""
    used = 0
    for j in range(t.prbs_used.shape[1]):
        used += t.prbs_used[k, j, DOWN]
    return used


@inner
def move(t: Cluster, c: Config, slot: int) -> None:
    """Measurements, handovers and arrivals that are due."""
    d, a = t.devices, t.air
    if slot >= d.next_slot[0]:
        d.next_slot[0] = slot + t.rules.period
        for ue in range(c.ues):
            handover.walk_on(t.whole, c, a, t.rules, d, ue)
            target = handover.better(t.rules, d.loss_db[ue], a.cell[ue], d.since[ue], slot)
            if target != NONE and not handover.busy(t.whole, ue):
                s = lend(cell(t, a.cell[ue]))
                take(t, s)
                handover.go_over(s, c, a, t.rules, d, ue, target)
                leave(t, s)
    i = 1
    while i <= d.away[0]:
        ue = d.away[i]
        if slot < d.until[ue]:
            i += 1
            continue
        d.away[i] = d.away[d.away[0]]
        d.away[0] -= 1
        handover.arrive(lend(cell(t, a.cell[ue])), c, ue)


@inner
def still(t: Cluster) -> bool:
    """Whether all cells are quiet."""
    quiet_cells = 0
    for k in range(t.n.shape[0]):
        quiet_cells += quiet(t.n[k])
    return bool(quiet_cells == t.n.shape[0])


@inner
def collect(t: Cluster, w: World, rules: Array) -> None:
    """Pass on what the cells have carried."""
    for k in range(t.n.shape[0]):
        if t.n[k, N.done] > 0:
            s = lend(cell(t, k))
            take(t, s)
            while s.n[N.done] > 0:
                delivered(s, w, rules)
            leave(t, s)


@inner
def flush(t: Cluster, c: Config, w: World) -> None:
    """Give the MACs what was offered, each what is for its devices, in that order."""
    for i in range(w.n[M.offered]):
        one = w.offers[i]
        ue = w.asked[one.id >> 20].ue
        s = lend(cell(t, t.air.cell[ue]))
        take(t, s)
        enqueue(s, c, one.kind * c.ues + ue, one.nbytes, one.at_s, one.id)
        leave(t, s)
    w.n[M.offered] = 0


@inner
def note(t: Cluster, w: World, slot: int) -> None:
    """Copy what was counted at every mark up to a slot."""
    while w.n[M.mark] < w.marks.size and w.marks[w.n[M.mark]] <= slot:
        at = w.n[M.mark]
        if at == 0:  # the warm-up does not count
            forget(t.air)
        for k in range(t.n.shape[0]):
            for j in range(t.prbs_used.shape[1]):
                for direction in range(2):
                    prbs, nbytes = t.prbs_used[k, j, direction], t.nbytes[k, j, direction]
                    w.counts[at, 0, j, direction] += prbs
                    w.counts[at, 1, j, direction] += nbytes
                    t.counts[at, k, 0, direction] += prbs
                    t.counts[at, k, 1, direction] += nbytes
        w.n[M.mark] += 1


def initial(
    network: Network,
    slice_of: Sequence[int],
    *,
    seed: int,
    trace: radio.Trace | None = None,
    grant: Grant | None = None,
    processing: bool = True,
    records: int = 1024,
    marks: int = 0,
    kinds: Sequence[str] = (),
    carriers: Sequence[int] = (),
    device_of: Sequence[int] | None = None,
    channels: Sequence[Channel] | None = None,
) -> tuple[Config, Cluster, association.Surroundings]:
    """Cells at their start. Raises `MacError` for what cannot be, `TraceError` for a trace without other cells."""
    if device_of is not None and len(set(device_of)) < len(device_of):
        raise MacError(
            f"{len(network.cell_names)} cells are given, and devices with several services are for one cell so far; "
            "study one, or give each service devices of its own."
        )
    if any(one.configured_grant for one in channels or ()):
        raise MacError(
            f"{len(network.cell_names)} cells are given, and configured grants are for one cell so far; "
            "study one, or leave configured_grant out."
        )
    rng = np.random.default_rng(seed)
    trace = trace or radio.load(network.cell)
    there = association.stood(network, trace, len(slice_of), rng, carriers)
    cell_of, walk = network.cell, mobility.stay()
    if cell_of.speed_kmh:
        walk = mobility.walks(mobility.ground(cell_of, there, rng), len(slice_of), cell_of.speed_kmh / 3.6, rng)
        there = replace(there, position_m=walk.place_m.copy(), loss_db=mobility.losses_db(walk))
    grant, cells, serving = grant or cell_of.grant, len(network.cell_names), there.serving
    if grant == "sr" and (sentence := uplink.too_many(cell_of, int(np.bincount(serving).max()))):
        raise MacError(sentence)
    c = config_of(network.cell, trace, len(network.slices), len(slice_of), grant, processing, alone=False)
    belongs = Belonging(np.asarray(slice_of, np.int64), np.arange(c.ues), (Channel(),) * c.ues)
    one = state_of(network, c, belongs, trace, rng, records)
    over_noise, up_over_down = association.over_noise(network.cell, trace, there.loss_db)
    shift_db = there.shift_db(np.arange(c.ues), serving)
    flow = one.flow
    flow["row"], flow["offset"] = np.tile(there.row, 2), np.tile(there.step, 2)
    flow["shift_db"] = np.tile(shift_db, 2)
    flow["open_db"] = uplink.open_loop_db(network.cell, trace)[flow["row"]] - network.cell.alpha * flow["shift_db"]
    one = outfit(one, network.cell, trace, kinds)
    one = one._replace(block=_more_blocks(one.block, c, BLOCKS * cells))
    n = np.tile(one.n, (cells, 1))
    n[:, N.random] = rng.integers(1, 2**63 - 1, cells)
    air = Air(
        over_noise=over_noise,
        up_over_down=up_over_down,
        cell=serving.astype(np.int64),
        load=np.zeros(cells),
        heard=np.zeros(cells),
        reported=np.zeros((REPORTS, 2, cells)),
        measured=np.full(REPORTS + 1, NONE),
        sinr=np.zeros((cells, 2, BINS), np.int64),
        device=np.zeros((c.ues, 2, 2)),
    )
    devices = handover.Devices(
        next_slot=np.array([0 if cell_of.speed_kmh else handover.NEVER]),
        away=np.zeros(1 + c.ues, np.int64),
        until=np.full(c.ues, NONE),
        loss_db=there.loss_db.copy(),
        own_loss_db=there.own_loss_db,
        own_open_db=flow["open_db"][: c.ues] + cell_of.alpha * shift_db,
        since=np.full((c.ues, cells), NONE),
        left=np.full((c.ues, 2), NONE),
        books=np.zeros((cells, 3), np.int64),
        walk=walk,
    )
    return (
        c,
        Cluster(
            n=n,
            calendar=np.tile(one.calendar, (cells, 1)),
            active=np.tile(one.active, (cells, 1, 1)),
            slices=np.tile(one.slices, (cells, 1, 1)),
            preamble=np.tile(one.preamble, (cells, 1, 1)),
            prbs_used=np.tile(one.prbs_used, (cells, 1, 1)),
            nbytes=np.tile(one.nbytes, (cells, 1, 1)),
            whole=one,
            free=one.n[[N.free_block, N.free_record]],
            air=air,
            rules=handover.rules(cell_of, association.without_loss_db(cell_of, trace)),
            devices=devices,
            counts=np.zeros((marks, cells, 2, 2), np.int64),
        ),
        there,
    )


def _more_blocks(block: Array, c: Config, more: int) -> Array:
    """The pool with some blocks more; the last are events of devices, and stay the last."""
    pool = len(block) - 3 * c.ues
    grown = np.zeros(len(block) + more, BLOCK)
    grown["next"] = np.arange(1, len(grown) + 1)
    grown["next"][pool + more - 1] = NONE
    grown[pool + more :] = block[pool:]
    return grown
