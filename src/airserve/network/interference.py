"""What cells do to each other in a slot: every transmission is heard through what the other cells send in it.

Down: each other cell's power, by the part of its PRBs that it uses in this slot. Up: the power-controlled power of
every device that another cell has granted, through its own loss to this cell. PRBs of cells are drawn apart, so the
overlap is taken at its mean. Interference counts as noise: its mean over a trace's snapshots, from no direction.
"""

from __future__ import annotations

from math import log10
from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import snr_db
from airserve.network.buffers import DOWN, NONE, UP, Config, N, State
from airserve.network.harq import receive
from airserve.network.jit import inner

LOWEST_DB, BINS = -30, 90  # of the histograms of SINR, 1 dB each
REPORTS = 2  # CQI reports that may be of use at once


class Air(NamedTuple):
    """What is between the cells."""

    over_noise: Array  # float32 (ues, cells): association.over_noise
    up_over_down: float
    cell: Array  # int64 (ues,): that serves a device
    load: Array  # float64 (cells,): part of the PRBs that each sends on, in the last slot with a downlink
    heard: Array  # float64 (cells,): interference over noise at each, in the last slot with an uplink
    reported: Array  # float64 (REPORTS, 2, cells): `load` and `heard` as they were measured for a CQI report
    measured: Array  # int64 (REPORTS + 1,): slots of these measurements; last, of the one in use
    sinr: Array  # int64 (cells, 2, BINS): first transmissions by direction and SINR on one layer, before EVM
    device: Array  # float64 (ues, 2, 2): by direction, sum of these SINRs in dB, and their number
    kind: Array  # int64 (cells,): of the carrier of each
    own: int  # kind of the carriers whose slot is run


@inner
def down_over_noise(a: Air, load: Array, ue: int) -> float:
    """Interference over noise at a device when the other cells use some parts of their PRBs."""
    total, own, row = 0.0, a.cell[ue], a.over_noise[ue]
    for k in range(load.size):
        if k != own:
            total += row[k] * load[k]
    return total


@inner
def report(s: State, c: Config, a: Air, slot: int) -> None:
    """Bring what devices know of interference up to date, at the slot from which a report is of use."""
    measured = max(slot - c.report_delay, 0) // c.report_period * c.report_period
    if measured == a.measured[REPORTS]:
        return
    a.measured[REPORTS] = measured
    which = measured // c.report_period % REPORTS
    silent = a.measured[which] != measured  # no cell had anything to send
    for ue in range(c.ues):
        if a.kind[a.cell[ue]] != a.own:
            continue
        down = 0.0 if silent else down_over_noise(a, a.reported[which, DOWN], ue)
        up = 0.0 if silent else a.reported[which, UP, a.cell[ue]]
        s.flow[ue].rise_db = 10.0 * log10(1.0 + down)
        s.flow[c.ues + ue].rise_db = 10.0 * log10(1.0 + up)


@inner
def measure(c: Config, a: Air, slot: int) -> None:
    """Keep what is on the air for the CQI reports, in a slot in which these are measured."""
    if slot % c.report_period == 0:
        which = slot // c.report_period % REPORTS
        a.measured[which] = slot
        for k in range(a.load.size):
            a.reported[which, DOWN, k], a.reported[which, UP, k] = a.load[k], a.heard[k]


@inner
def power_db(s: State, c: Config, f: int, prbs: int) -> float:
    """Power of a PRB of a grant against 23 dBm spread over the carrier: as in `adaptation.sinr_db`."""
    return float(min(10.0 * log10(c.prbs / prbs), s.flow[f].open_db))


@inner
def sent(s: State, c: Config, a: Air, k: int) -> None:
    """Count what the devices of a cell put on the air in a slot: of several on the same PRBs, each its own power."""
    b = s.n[N.air]
    while b != NONE:
        block = s.block[b]
        if s.flow[block.flow].direction == UP:
            ue = s.flow[block.flow].ue
            part = block.prbs / c.prbs * a.up_over_down * 10.0 ** (power_db(s, c, block.flow, block.prbs) / 10)
            for other in range(a.heard.size):
                if other != k:
                    a.heard[other] += part * a.over_noise[ue, other]
        b = block.next


@inner
def forget(a: Air) -> None:
    """Count SINR anew."""
    for k in range(a.sinr.shape[0]):
        for direction in range(2):
            for i in range(BINS):
                a.sinr[k, direction, i] = 0
    for ue in range(a.device.shape[0]):
        for direction in range(2):
            for i in range(2):
                a.device[ue, direction, i] = 0.0


@inner
def heard(s: State, c: Config, a: Air, k: int) -> None:
    """Receive all that a cell's slot put on the air, and forget it."""
    b = s.n[N.air]
    s.n[N.air] = NONE
    while b != NONE:
        block = s.block[b]
        following = block.next
        flow = s.flow[block.flow]
        over = a.heard[k] if flow.direction == UP else down_over_noise(a, a.load, flow.ue)
        rise_db = 10.0 * log10(1.0 + over)
        if block.attempts == 1:
            sinr = snr_db(s, c, block.flow, 1, s.n[N.slot]) - rise_db
            if flow.direction == UP:
                sinr += power_db(s, c, block.flow, block.prbs)
            a.sinr[k, flow.direction, min(max(int(np.floor(sinr)) - LOWEST_DB, 0), BINS - 1)] += 1
            of = a.device[flow.ue, flow.direction]
            of[0] += sinr
            of[1] += 1.0
        receive(s, c, b, rise_db)
        b = following
