"""Devices that walk: where they go, and what they hear of each cell at every place (a map of coupling loss).

The map is made without a channel simulator: path loss, line of sight and shadowing of TR 38.901 with the correlation
in space of Tables 7.5-6 and 7.6.3.1-2, and the element pattern of Table 7.3-1. Devices are outdoors, or in the hall.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from airserve.model import Array
from airserve.network.association import Surroundings
from airserve.network.cell import Cell
from airserve.network.jit import inner
from airserve.network.lattice import HALLS, SITE_DISTANCE_M, Hexagons
from airserve.network.path_loss import (
    MAST_M,
    SHADOW,
    UE_HEIGHT_M,
    element_dbi,
    path_loss_db,
    sight_probability,
)

STEPS = 40  # of the map, over the distance of sites
HALL_STEP_M = 1.0


class Ground(NamedTuple):
    """Coupling loss at the points of a grid."""

    loss_db: Array  # float32 (cells, rows, columns)
    corner_m: Array  # float64 (2,): of the first point
    step_m: float


class Walk(NamedTuple):
    """Devices on the ground. Each goes straight on, and turns back at the border as light from a mirror."""

    place_m: Array  # float64 (ues, 2)
    speed_ms: Array  # float64 (ues, 2), along x and y
    ground: Ground


def ground(cell: Cell, there: Surroundings, rng: Generator) -> Ground:
    """The map of a layout; shadowing and line of sight are a site's, the pattern a sector's.

    >>> from airserve.network import association, radio
    >>> from airserve.network.topology import Network, Site, Slice
    >>> hall = Network(cells=(Cell(name="hall", trps=2),), slices=(Slice(name="all"),),
    ...     sites=(Site(name="mast", kind="edge"),))
    >>> there = association.stood(hall, radio.load(hall.cell), ues=1, rng=np.random.default_rng(0))
    >>> ground(hall.cell, there, np.random.default_rng(0)).loss_db.shape
    (2, 61, 121)
    """
    name, cells_m = cell.scenario, there.cell_position_m
    if name in HALLS:
        hall = HALLS[name]
        corner, far, step, mast_m = np.zeros(2), np.array([hall.length_m, hall.width_m]), HALL_STEP_M, hall.gnb_height_m
        site_of = np.arange(len(cells_m))
        images = np.zeros((1, 2))
    else:
        reach_m = SITE_DISTANCE_M[name]
        step, mast_m, site_of = reach_m / STEPS, MAST_M[name], np.arange(len(cells_m)) // 3
        corner, far = cells_m.min(axis=0) - reach_m / 2, cells_m.max(axis=0) + reach_m / 2
        images = reach_m * Hexagons(len(cells_m)).images
    columns, rows = (int(n) for n in np.ceil((far - corner) / step - 1e-9) + 1)
    x, y = np.meshgrid(corner[0] + step * np.arange(columns), corner[1] + step * np.arange(rows))
    shadow, loss_db = SHADOW[name], np.empty((len(cells_m), rows, columns), np.float32)
    for site in np.unique(site_of):
        mine = np.flatnonzero(site_of == site)
        away = np.stack([x, y], axis=-1)[None] - cells_m[mine[0]] - images[:, None, None]
        nearest = np.hypot(away[..., 0], away[..., 1]).argmin(axis=0)
        dx, dy = np.take_along_axis(away, nearest[None, ..., None], axis=0)[0].transpose(2, 0, 1)
        flat_m = np.hypot(dx, dy)
        los_db, nlos_db = path_loss_db(name, np.hypot(flat_m, mast_m - UE_HEIGHT_M), mast_m, cell.carrier_ghz)
        los_db = los_db + shadow.los_db * correlated(rows, columns, shadow.los_m / step, rng)
        nlos_db = nlos_db + shadow.nlos_db * correlated(rows, columns, shadow.nlos_m / step, rng)
        seen = _below(correlated(rows, columns, shadow.sight_m / step, rng)) < sight_probability(name, flat_m, mast_m)
        site_db = np.where(seen, los_db, nlos_db)
        for k in mine:
            gain_db = np.zeros(())
            if not np.isnan(there.boresight[k]):
                below = np.arctan2(mast_m - UE_HEIGHT_M, np.maximum(flat_m, 1e-3))
                gain_db = element_dbi(np.arctan2(dy, dx) - there.boresight[k], below)
            loss_db[k] = site_db - gain_db
    return Ground(loss_db, corner.astype(np.float64), float(step))


def correlated(rows: int, columns: int, distance: float, rng: Generator) -> Array:
    """A normal field whose correlation is exp(-d / distance), d in points of the grid; float64 (rows, columns)."""
    tall, wide = rows + int(4 * distance) + 1, columns + int(4 * distance) + 1  # so that no border sees the other
    dy, dx = (np.minimum(np.arange(n), n - np.arange(n)) for n in (tall, wide))
    power = np.fft.fft2(np.exp(-np.hypot(dy[:, None], dx[None]) / max(distance, 1e-6))).real.clip(0)
    power *= tall * wide / power.sum()
    field = np.fft.ifft2(np.sqrt(power) * np.fft.fft2(rng.standard_normal((tall, wide)))).real
    inside: Array = field[:rows, :columns]
    return inside


def _below(normal: Array) -> Array:
    """Probability that a standard normal variable is below some values, by a table."""
    at = np.linspace(-5, 5, 1001)
    part: Array = np.interp(normal, at, [NormalDist().cdf(value) for value in at])
    return part


def walks(land: Ground, ues: int, speed_ms: float, rng: Generator) -> Walk:
    """Devices anywhere on the ground, each on its way somewhere."""
    _, rows, columns = land.loss_db.shape
    size_m = land.step_m * np.array([columns - 1, rows - 1])
    way = rng.uniform(0, 2 * np.pi, ues)
    place_m = land.corner_m + rng.uniform(0, 1, (ues, 2)) * size_m
    return Walk(place_m, speed_ms * np.stack([np.cos(way), np.sin(way)], axis=-1), land)


def stay() -> Walk:
    """Nobody walks."""
    return Walk(np.zeros((0, 2)), np.zeros((0, 2)), Ground(np.zeros((0, 2, 2), np.float32), np.zeros(2), 1.0))


def losses_db(w: Walk) -> Array:
    """Losses to all cells where devices are, float64 (ues, cells)."""
    loss_db = np.empty((len(w.place_m), len(w.ground.loss_db)))
    for (x_m, y_m), row in zip(w.place_m, loss_db, strict=True):
        look_up.py_func(w.ground, x_m, y_m, row)
    return loss_db


@inner
def go(w: Walk, ue: int, seconds: float) -> None:
    """Move a device on."""
    for axis in range(2):
        low = w.ground.corner_m[axis]
        high = low + w.ground.step_m * (w.ground.loss_db.shape[2 - axis] - 1)
        at = w.place_m[ue, axis] + w.speed_ms[ue, axis] * seconds
        while at < low or at > high:
            at = 2 * (low if at < low else high) - at
            w.speed_ms[ue, axis] = -w.speed_ms[ue, axis]
        w.place_m[ue, axis] = at


@inner
def look_up(g: Ground, x_m: float, y_m: float, loss_db: Array) -> None:
    """Losses to all cells at a place, float64 (cells,): between the four points round it."""
    x, y = (x_m - g.corner_m[0]) / g.step_m, (y_m - g.corner_m[1]) / g.step_m
    i, j = min(int(x), g.loss_db.shape[2] - 2), min(int(y), g.loss_db.shape[1] - 2)
    right, up = x - i, y - j
    for k in range(loss_db.size):
        near, far = g.loss_db[k, j], g.loss_db[k, j + 1]
        low = near[i] * (1 - right) + near[i + 1] * right
        high = far[i] * (1 - right) + far[i + 1] * right
        loss_db[k] = low * (1 - up) + high * up
