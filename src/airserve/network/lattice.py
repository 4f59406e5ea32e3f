"""Where cells stand: the halls, offices and hexagons of TR 38.901 Tables 7.8-1, -2 and -7."""

from __future__ import annotations

from dataclasses import dataclass

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


def places(scenario: str) -> int:
    """How many cells of a network the layout has room for: the lattice of a hall, or 19 sites of three sectors.

    >>> places("inf-dh"), places("inh"), places("umi")
    (18, 12, 57)
    """
    return len(cells(scenario, np.zeros(3), np.zeros(3))[0]) - (scenario in HALLS)


def wide_apart(position_m: Array, n: int) -> Array:
    """Which `n` places, int64: from the first on, always that which is farthest from all chosen before.

    >>> wide_apart(np.array([[0.0], [1.0], [10.0], [4.0]]), 3).tolist()
    [0, 2, 3]
    """
    chosen = [0]
    apart = np.linalg.norm(position_m - position_m[0], axis=1)
    while len(chosen) < n:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(position_m - position_m[chosen[-1]], axis=1))
    return np.array(chosen)


class Hexagons:
    """The sites of an outdoor layout on the axes of their lattice, and how they look from a sector of any of them.

    A site is (a, b) for a position of d (a + b / 2, b sqrt(3) / 2). All 19 are wrapped round (a torus whose images
    are d sqrt(19) away), as TR 38.901 calibrates; fewer are not.
    """

    def __init__(self, cells_there: int) -> None:
        self.sites = [_axes(*site) for site in _hexagon(1.0)]
        self.wrapped = cells_there == 3 * len(self.sites)
        self._number = {site: k for k, site in enumerate(self.sites)}
        shifts = [(0, 0), (3, 2), (-2, 5), (-5, 3), (-3, -2), (2, -5), (5, -3)]
        self._shifts = shifts if self.wrapped else shifts[:1]

    @property
    def images(self) -> Array:
        """How far off the images of the layout are, float64 (image, 2), in distances of sites; itself the first.

        >>> Hexagons(57).images.shape, Hexagons(3).images.tolist()
        ((7, 2), [[0.0, 0.0]])
        """
        return np.array([[a + b / 2, b * np.sqrt(3) / 2] for a, b in self._shifts])

    def seen(self, home: int, cell: int) -> int:
        """The cell that stands to the first as one cell does to another, or -1 where that is outside of the layout.

        >>> Hexagons(57).seen(home=1, cell=1), Hexagons(57).seen(home=1, cell=2), Hexagons(57).seen(home=1, cell=0)
        (0, 1, 2)
        """
        (a, b), (x, y) = self.sites[home // 3], self.sites[cell // 3]
        for u, v in self._shifts:
            place = (x - a + u, y - b + v)
            for _ in range(-home % 3):
                place = turned(place)
            if place in self._number:
                return 3 * self._number[place] + (cell - home) % 3
        return -1


def turned(site: tuple[int, int]) -> tuple[int, int]:
    """A site, turned by 120 degrees about the middle."""
    a, b = site
    return -a - b, a


def _axes(x: float, y: float) -> tuple[int, int]:
    b = round(y * 2 / np.sqrt(3))
    return round(x - b / 2), b


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
