"""Several cells that advance together, slot by slot: each schedules, then all is heard through all.

Cells whose carriers differ in the length of a slot take turns: next comes the one that has to be filled first.

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
from airserve.network.carriers import alone, config, packed, side_by_side, together, traces
from airserve.network.carriers import kinds as carrier_kinds
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
    air: Air  # of the first kind of carriers; of the others what differs is here:
    up_over_down: Array  # float64 (kinds,)
    reported: Array  # float64 (kinds, REPORTS, 2, cells)
    measured: Array  # int64 (kinds, REPORTS + 1)
    configs: Array  # carriers.CONFIG (kinds,)
    patterns: Array  # frame.SLOT (kinds, slots)
    first: Array  # int64 (kinds,): a cell of each
    rules: handover.Rules
    devices: handover.Devices
    counts: Array  # int64 (marks, cells, 2, 2): PRBs and bytes by direction, at every mark


@inner
def cell(t: Cluster, k: int) -> State:
    """One of the cells, as the steps of a slot know it: its arrays are borrowed, so only `inner` functions may call."""
    w = t.whole
    return State(
        t.n[k], w.flow, w.block, w.record, t.calendar[k], t.active[k], t.slices[k], t.patterns[t.air.kind[k]], w.ue,
        t.preamble[k],
        w.levels, w.long_levels, w.channel, w.standing, w.booked, w.snr_db, w.reported_db, w.whole_db, owned(w.beams),
        w.candidate, t.prbs_used[k], t.nbytes[k],
    )  # fmt: skip


@inner
def air(t: Cluster, g: int) -> Air:
    """What is between the cells whose carriers are of a kind."""
    a = t.air
    return Air(
        a.over_noise, t.up_over_down[g], a.cell, a.load, a.heard, t.reported[g], t.measured[g], a.sinr, a.device,
        a.kind, g,
    )  # fmt: skip


@inner
def take(t: Cluster, s: State) -> None:
    """A cell takes blocks and records from what is free in all."""
    s.n[N.free_block], s.n[N.free_record] = t.free[0], t.free[1]


@inner
def leave(t: Cluster, s: State) -> None:
    t.free[0], t.free[1] = s.n[N.free_block], s.n[N.free_record]


@njit
def simulate(cluster: Cluster, world: World, rules: Array, end: int) -> None:
    """As `passage.simulate`, for all cells; `end` and marks are in slots of the first kind of carriers."""
    t, w = lend(cluster), lend(world)
    c = lend(config(t.configs, 0))
    until_s = end * c.slot_s - c.prepare_s
    while w.n[M.closed] < w.asked.size:
        g = soonest(t, until_s)
        if g == NONE:
            return
        c, slot = lend(config(t.configs, g)), t.n[t.first[g], N.slot]
        note(t, w, slot * c.slot_s - c.prepare_s)
        while w.n[M.sent] < w.asked.size and visible_slot(c, w.asked[w.n[M.sent]].ready_s) <= slot:
            begin(c, w, rules, w.n[M.sent])
            w.n[M.sent] += 1
            flush(t, w)
        while w.n[M.events] > 0 and visible_slot(c, w.event[w.heap[0]].at_s) <= slot:
            happen(w, rules)
            flush(t, w)
        if still(t) and t.devices.away[0] == 0 and slot < t.devices.next_slot[0]:
            skip(t, w, until_s)
            continue
        step(t, c, g)
        collect(t, w, rules, g)


@inner
def soonest(t: Cluster, until_s: float) -> int:
    """The kind of carriers whose next slot has to be filled first, or NONE that has to be before a time.

    What a slot carries has come before its start, less the time to prepare it: so in this order nothing that a slot
    delivers comes too late for another.
    """
    found = NONE
    for g in range(t.configs.size):
        fill_s = t.n[t.first[g], N.slot] * t.configs[g].slot_s - t.configs[g].prepare_s
        if fill_s < until_s - 1e-9:
            found, until_s = g, fill_s
    return found


@inner
def skip(t: Cluster, w: World, until_s: float) -> None:
    """No cell has anything to do: go to the first slots that can carry what comes next."""
    next_s = until_s
    if w.n[M.sent] < w.asked.size:
        next_s = min(next_s, w.asked[w.n[M.sent]].ready_s)
    if w.n[M.events] > 0:
        next_s = min(next_s, w.event[w.heap[0]].at_s)
    for g in range(t.configs.size):
        to = min(visible_slot(lend(config(t.configs, g)), next_s), t.devices.next_slot[0])
        for k in range(t.air.kind.size):
            if t.air.kind[k] == g:
                t.n[k, N.slot] = max(t.n[k, N.slot], to)


@inner
def step(t: Cluster, c: Config, g: int) -> None:
    """Run one slot of the cells whose carriers are of a kind: all schedule, then all is heard."""
    cells, slot, a = t.n.shape[0], t.n[t.first[g], N.slot], air(t, g)
    elements = t.patterns[g, slot % t.patterns.shape[1]].elements
    move(t, c, slot)
    report(t.whole, c, a, slot)
    for k in range(cells):
        if a.kind[k] == g:
            a.load[k] *= elements[DOWN] == 0
            a.heard[k] *= elements[UP] == 0
    for k in range(cells):
        if a.kind[k] != g or quiet(t.n[k]):
            continue
        s = lend(cell(t, k))
        take(t, s)
        if s.n[N.events] > 0:
            outcomes(s, c)
        before = prbs_down(t, k)
        for direction in range(2):
            if elements[direction] > 0 and s.n[N.active + direction] + s.n[N.resends + direction] > 0:
                schedule(s, c, direction, elements[direction])
        a.load[k] += (prbs_down(t, k) - before) / c.prbs  # several devices on the same PRBs divide their power
        sent(s, c, a, k)
        leave(t, s)
    measure(c, a, slot)
    for k in range(cells):
        if a.kind[k] != g:
            continue
        if t.n[k, N.air] != NONE:
            s = lend(cell(t, k))
            take(t, s)
            heard(s, c, a, k)
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
def collect(t: Cluster, w: World, rules: Array, g: int) -> None:
    """Pass on what the cells whose carriers are of a kind have carried."""
    for k in range(t.n.shape[0]):
        if t.air.kind[k] == g and t.n[k, N.done] > 0:
            s = lend(cell(t, k))
            take(t, s)
            while s.n[N.done] > 0:
                delivered(s, w, rules)
            leave(t, s)


@inner
def flush(t: Cluster, w: World) -> None:
    """Give the MACs what was offered, each what is for its devices, in that order."""
    for i in range(w.n[M.offered]):
        one = w.offers[i]
        ue = w.asked[one.id >> 20].ue
        k = t.air.cell[ue]
        s, c = lend(cell(t, k)), lend(config(t.configs, t.air.kind[k]))
        take(t, s)
        enqueue(s, c, one.kind * c.ues + ue, one.nbytes, one.at_s, one.id)
        leave(t, s)
    w.n[M.offered] = 0


@inner
def note(t: Cluster, w: World, now_s: float) -> None:
    """Copy what was counted at every mark up to now: the time up to which what comes can still be sent."""
    slot_s, prepare_s = t.configs[0].slot_s, t.configs[0].prepare_s
    while w.n[M.mark] < w.marks.size and w.marks[w.n[M.mark]] * slot_s - prepare_s <= now_s + 1e-9:
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
    trace: radio.Trace | Sequence[radio.Trace] | None = None,
    grant: Grant | None = None,
    processing: bool = True,
    records: int = 1024,
    marks: int = 0,
    kinds: Sequence[str] = (),
    carriers: Sequence[int] = (),
    device_of: Sequence[int] | None = None,
    channels: Sequence[Channel] | None = None,
) -> tuple[Config, Cluster, association.Surroundings]:
    """Cells at their start, and the first kind of carriers. `trace`: of each kind, or of the one that there is.

    Raises `MacError` for what cannot be, `TraceError` for a trace without other cells.
    """
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
    rng, ues = np.random.default_rng(seed), len(slice_of)
    of, on = carrier_kinds(network), np.asarray(carriers or np.zeros(ues), np.int64)
    followed = traces(of, trace)
    nets = [alone(network, cell) for cell in of.cells]
    stood = [association.stood(net, one, ues, rng) for net, one in zip(nets, followed, strict=True)]
    there = side_by_side(stood, of, on)
    cell_of, walk = of.cells[0], mobility.stay()
    if cell_of.speed_kmh:
        walk = mobility.walks(mobility.ground(cell_of, there, rng), ues, cell_of.speed_kmh / 3.6, rng)
        there = replace(there, position_m=walk.place_m.copy(), loss_db=mobility.losses_db(walk))
    grant, cells, serving = grant or cell_of.grant, len(network.cell_names), there.serving
    kind, mine = of.of_cells(len(network.station_names)), of.of_carrier[on]
    devices_of = np.bincount(serving, minlength=cells)
    shift_db = there.shift_db(np.arange(ues), serving)
    belongs = Belonging(np.asarray(slice_of, np.int64), np.arange(ues), (Channel(),) * ues)
    configs, parts, over_noise, up_over_down = [], [], np.zeros((ues, cells), np.float32), np.zeros(len(of.cells))
    for g, (net, one_of, one) in enumerate(zip(nets, of.cells, followed, strict=True)):
        if grant == "sr" and (sentence := uplink.too_many(one_of, int(devices_of[kind == g].max()))):
            raise MacError(sentence)
        c = config_of(one_of, one, len(network.slices), ues, grant, processing, alone=False)
        part = state_of(net, c, belongs, one, rng, records if g == 0 else 1)
        flow, row = part.flow, np.where(mine == g, there.row, 0)
        flow["row"], flow["offset"] = np.tile(row, 2), np.tile(there.step, 2)
        flow["shift_db"] = np.tile(shift_db, 2)
        flow["open_db"] = uplink.open_loop_db(one_of, one)[flow["row"]] - one_of.alpha * flow["shift_db"]
        over, up_over_down[g] = association.over_noise(one_of, one, there.loss_db)
        over_noise[:, kind == g] = over[:, kind == g]
        configs.append(c)
        parts.append(outfit(part, one_of, one, kinds))
    c, whole, patterns = configs[0], *together(parts, mine)
    whole = whole._replace(block=_more_blocks(whole.block, c, BLOCKS * cells))
    n = np.tile(whole.n, (cells, 1))
    n[:, N.random] = rng.integers(1, 2**63 - 1, cells)
    reported, measured = np.zeros((len(parts), REPORTS, 2, cells)), np.full((len(parts), REPORTS + 1), NONE)
    air = Air(
        over_noise=over_noise,
        up_over_down=float(up_over_down[0]),
        cell=serving.astype(np.int64),
        load=np.zeros(cells),
        heard=np.zeros(cells),
        reported=reported[0],
        measured=measured[0],
        sinr=np.zeros((cells, 2, BINS), np.int64),
        device=np.zeros((ues, 2, 2)),
        kind=kind,
        own=0,
    )
    devices = handover.Devices(
        next_slot=np.array([0 if cell_of.speed_kmh else handover.NEVER]),
        away=np.zeros(1 + ues, np.int64),
        until=np.full(ues, NONE),
        loss_db=there.loss_db.copy(),
        own_loss_db=there.own_loss_db,
        own_open_db=whole.flow["open_db"][:ues] + cell_of.alpha * shift_db,
        since=np.full((ues, cells), NONE),
        left=np.full((ues, 2), NONE),
        books=np.zeros((cells, 3), np.int64),
        walk=walk,
    )
    return (
        c,
        Cluster(
            n=n,
            calendar=np.tile(whole.calendar, (cells, 1)),
            active=np.tile(whole.active, (cells, 1, 1)),
            slices=np.stack([parts[g].slices for g in kind]),
            preamble=np.tile(whole.preamble, (cells, 1, 1)),
            prbs_used=np.tile(whole.prbs_used, (cells, 1, 1)),
            nbytes=np.tile(whole.nbytes, (cells, 1, 1)),
            whole=whole,
            free=whole.n[[N.free_block, N.free_record]],
            air=air,
            up_over_down=up_over_down,
            reported=reported,
            measured=measured,
            configs=packed(configs),
            patterns=patterns,
            first=np.array([int(np.argmax(kind == g)) for g in range(len(parts))]),
            rules=handover.rules(cell_of, association.without_loss_db(cell_of, followed[0])),
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
