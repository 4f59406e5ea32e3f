"""Which cell a device belongs to: that of the least coupling loss, TR 38.901 Table 7.8-1 (cell selection by RSRP)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import numpy as np
from numpy.random import Generator

from airserve.model import Array
from airserve.network import frame, radio
from airserve.network.cell import Cell
from airserve.network.lattice import HALLS, Hexagons, wide_apart
from airserve.network.topology import Network
from airserve.network.uplink import NOISE_DBM_HZ, NOISE_FIGURE_DB, POWER_DBM

BORESIGHT = np.pi / 6  # of the first sector of a site, from the x axis; the others follow every 120 degrees


@dataclass(frozen=True)
class Surroundings:
    """Where devices and cells stand, and what lies between them: the long-term radio of many cells.

    Coupling loss is between one port and one antenna (coupling.py), the mean over a trace's snapshots.
    """

    position_m: Array  # float64 (ue, 2)
    cell_position_m: Array  # float64 (cell, 2)
    boresight: Array  # float64 (cell,), radians from the x axis; nan for a cell that sends everywhere alike
    row: Array  # int64 (ue,): of the trace, whose fading and layers a device has
    step: Array  # int64 (ue,): in it
    loss_db: Array  # float64 (ue, cell); inf for a cell out of range
    own_loss_db: Array  # float64 (ue,): of the trace's own link

    @property
    def serving(self) -> Array:
        """The cell of each device, int64 (ue,)."""
        best: Array = self.loss_db.argmin(axis=1)
        return best

    def shift_db(self, ue: int | Array, cell: int | Array) -> Array:
        """SNR of links to cells against that of the trace's own link: the loss differs, the rest is alike."""
        return np.asarray(self.own_loss_db[ue] - self.loss_db[ue, cell])


def stood(network: Network, trace: radio.Trace, ues: int, rng: Generator) -> Surroundings:
    """Devices at the places of a trace, as many at home in each cell, with the losses that it stores.

    Outdoors a trace has the devices of one sector. The layout looks the same from each of its sectors, so that a
    device at home in another is one of these, moved and turned. A device belongs to the cell that it hears best,
    which need not be that where it is at home. In a hall cells stand at places of the lattice, wide apart.
    Raises `TraceError` where the trace has no losses to other cells.

    >>> from airserve.network.topology import Site, Slice
    >>> hall = Network(cells=(Cell(name="hall", trps=2),), slices=(Slice(name="all"),),
    ...     sites=(Site(name="mast", kind="edge"),))
    >>> there = stood(hall, radio.load(hall.cell), ues=50, rng=np.random.default_rng(0))
    >>> there.cell_position_m.tolist(), there.loss_db.shape
    ([[10.0, 10.0], [110.0, 50.0]], (50, 2))
    """
    stored, own_db = losses_db(trace)
    cells, cell = len(network.station_names), network.cell
    row, step = radio.assign(trace, ues, rng)
    places_m, here_m = np.asarray(trace.cell_position_m, np.float64)[:, :2], trace.position_m[row, :2]
    if cells == 1:
        loss_db, at_m, looks = own_db[row][:, None], places_m[:1], np.full(1, np.nan)
    elif cell.scenario in HALLS:
        chosen = 1 + wide_apart(places_m[1:], cells)
        loss_db, at_m, looks = stored[row][:, chosen], places_m[chosen], np.full(cells, np.nan)
    else:
        layout, home = Hexagons(cells), rng.permutation(np.arange(ues) % cells)
        column = np.array([[layout.seen(k, other) for other in range(cells)] for k in range(cells)])
        reached = np.where(column < 0, np.inf, 0.0)
        loss_db = np.take_along_axis(stored[row], column[home] % stored.shape[1], axis=1) + reached[home]
        at_m, turn = places_m[:cells], np.arange(cells) % 3 * 2 * np.pi / 3
        looks = BORESIGHT + turn
        relative = here_m - places_m[0]
        cos, sin = np.cos(turn[home]), np.sin(turn[home])
        x, y = relative.T
        here_m = at_m[home] + np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    unheard = np.flatnonzero(~np.isfinite(loss_db).any(axis=1))  # in the trace, from any of these cells: at the limit
    if len(unheard):
        nearest = np.linalg.norm(here_m[unheard, None] - at_m, axis=-1).argmin(axis=1)
        loss_db[unheard, nearest] = stored[row[unheard]].min(axis=1) + radio.RANGE_DB
    return Surroundings(here_m.astype(np.float64), at_m, looks, row, step, loss_db, own_db[row])


def losses_db(trace: radio.Trace) -> tuple[Array, Array]:
    """Mean loss to each cell, float64 (row, cell), inf where out of range; and that of the own link (row,).

    A link that is out of range of the best is not stored. Where that is the own one, its loss is what the SNR of the
    strongest direction leaves, with the gain that this has at the other devices' (median).
    """
    if trace.coupling_loss_db is None:
        raise radio.TraceError(
            f"this trace of {trace.scenario} has no losses to other cells; make it again with `airserve traces`."
        )
    stored = trace.coupling_loss_db.astype(np.float64)
    gain = np.where(stored == radio.OUT_OF_RANGE, 0.0, 10 ** (-stored / 10)).mean(axis=1)
    with np.errstate(divide="ignore"):
        loss_db = -10 * np.log10(gain)
    own_db = loss_db[:, 0].copy()
    if not (known := np.isfinite(own_db)).all():
        snr_db = 10 * np.log10((10 ** (trace.snr_down_db[..., 0].astype(np.float64) / 10)).mean(axis=1))
        made = trace.made_by
        there_db = made["gnb_power_dbm"] - made["ue_noise_figure_db"] - NOISE_DBM_HZ - snr_db  # less the bandwidth
        array_db = np.median((own_db - there_db)[known]) if known.any() else 0.0
        own_db = np.where(known, own_db, there_db + array_db)
    return loss_db, own_db


def over_noise(cell: Cell, trace: radio.Trace, loss_db: Array) -> tuple[Array, float]:
    """What a cell's transmission on all PRBs is at a device, over its noise: float32 (ue, cell), linear.

    And the factor from there to what 23 dBm of the device, spread over the carrier, is at one port of the cell.
    """
    made = trace.made_by
    down_db = without_loss_db(cell, trace) - loss_db
    up_over_down_db = (POWER_DBM - NOISE_FIGURE_DB) - (made["gnb_power_dbm"] - made["ue_noise_figure_db"])
    over = np.ascontiguousarray(10 ** (down_db / 10), np.float32)  # one layout: compiled once
    return over, float(10 ** (up_over_down_db / 10))


def without_loss_db(cell: Cell, trace: radio.Trace) -> float:
    """A cell's transmission over the noise of a device, in dB, were there no loss between."""
    band_db = 10 * log10(frame.SUBCARRIERS * cell.prbs * cell.scs_khz * 1e3)
    made = trace.made_by
    return float(made["gnb_power_dbm"] - (NOISE_DBM_HZ + made["ue_noise_figure_db"] + band_db))
