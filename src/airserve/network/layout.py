"""Where base stations and UEs of a scenario stand: TR 38.901 Tables 7.8-1, -2 and -7, for making radio traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from airserve.model import Array


@dataclass(frozen=True)
class Hall:
    """A factory hall (TR 38.901 Table 7.8-7) or office floor (Table 7.8-1).

    The base station of a trace is at the middle of a short wall and looks at the middle of the floor. Neighbours hang
    in the rows of the table, `spacing_m` apart, each an element that sends everywhere alike.
    """

    length_m: float
    width_m: float
    gnb_height_m: float
    spacing_m: float
    ue_height_m: float = 1.5


HALLS = {
    "inf-sl": Hall(120, 60, 1.5, 20),
    "inf-dh": Hall(120, 60, 8.0, 20),
    "inf-dl": Hall(300, 150, 1.5, 50),
    "inf-sh": Hall(300, 150, 8.0, 50),
    "inh": Hall(120, 50, 3.0, 20, ue_height_m=1.0),
}
SITE_DISTANCE_M = {"umi": 200.0, "uma": 500.0, "rma": 5000.0}
RINGS = 2  # of sites round the one of the trace: 19 sites of three sectors


def drop(scenario: str, carrier_hz: float, ues: int, speed_ms: float, seed: int) -> dict[str, Any]:
    """Where base station and UEs are, as Sionna's `set_topology` takes it: tensors of shape (1, ue or 1, ...).

    A street or a field is dropped by Sionna with its global seed: UEs in the first of three sectors.
    """
    import torch

    rng = np.random.default_rng([seed, 0])
    heading = rng.uniform(0, 2 * np.pi, ues)
    velocity = speed_ms * np.stack([np.cos(heading), np.sin(heading), 0 * heading], -1)
    turned = np.stack([rng.uniform(0, 2 * np.pi, ues), np.zeros(ues), np.zeros(ues)], -1)
    if scenario in HALLS:
        hall = HALLS[scenario]
        place = np.stack(
            [
                rng.uniform(1, hall.length_m, ues),  # at least 1 m from the wall of the base station
                rng.uniform(0, hall.width_m, ues),
                np.full(ues, hall.ue_height_m),
            ],
            -1,
        )
        gnb = np.array([[0, hall.width_m / 2, hall.gnb_height_m]])
        tilt = np.arctan2(hall.gnb_height_m - hall.ue_height_m, hall.length_m / 2)  # at the middle of the hall
        boresight, indoor = np.array([[0, tilt, 0]]), np.ones(ues, bool)
    else:
        from sionna.sys import gen_tr38901_multicell_topology

        sectors = gen_tr38901_multicell_topology(scenario, 1, ues, carrier_hz, num_rings=0)
        place, gnb, boresight = sectors[0][0, :ues].numpy(), sectors[1][0, :1].numpy(), sectors[3][0, :1].numpy()
        indoor = sectors[5][0, :ues].numpy()

    def tensor(array: Array) -> Any:
        return torch.tensor(array[None], dtype=torch.bool if array.dtype == bool else torch.float32)

    return {
        "ut_loc": tensor(place), "bs_loc": tensor(gnb), "ut_orientations": tensor(turned),
        "bs_orientations": tensor(boresight), "ut_velocities": tensor(velocity), "in_state": tensor(indoor),
        "los": "random",
    }  # fmt: skip


def cells(scenario: str, gnb_position_m: Array, gnb_orientation: Array) -> tuple[Array, Array]:
    """Positions in metres and orientations in radians of all cells, float (cell, 3) each; the trace's own is the first.

    In halls its neighbours are the lattice of the table; outdoors the two other sectors of its site, and three
    sectors at each site of the hexagons round it.

    >>> [len(cells(name, np.zeros(3), np.zeros(3))[0]) for name in ("inf-dh", "inh", "umi")]
    [19, 13, 57]
    """
    if scenario in HALLS:
        hall = HALLS[scenario]
        x, y = (_centred(length_m, hall.spacing_m) for length_m in (hall.length_m, hall.width_m))
        lattice = np.array([[a, b, hall.gnb_height_m] for b in y for a in x])
        places = np.concatenate([gnb_position_m[None], lattice])
        return places, np.concatenate([gnb_orientation[None], np.zeros_like(lattice)])
    sites = np.array([*_hexagon(SITE_DISTANCE_M[scenario])])
    places = gnb_position_m + np.repeat(np.c_[sites, np.zeros(len(sites))], 3, axis=0)
    turns = np.array([[turn, 0, 0] for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)])
    return places, np.tile(gnb_orientation + turns, (len(sites), 1))


def _centred(length_m: float, spacing_m: float) -> Array:
    some = int(length_m // spacing_m)
    return (length_m - (some - 1) * spacing_m) / 2 + spacing_m * np.arange(some)


def _hexagon(distance_m: float) -> list[tuple[float, float]]:
    """Sites within `RINGS` rings, nearest first, (0, 0) the first."""
    found = [
        (distance_m * (a + b / 2), distance_m * b * np.sqrt(3) / 2)
        for a in range(-RINGS, RINGS + 1)
        for b in range(-RINGS, RINGS + 1)
        if abs(a + b) <= RINGS
    ]
    return sorted(found, key=lambda site: (round(np.hypot(*site), 3), site))
