"""Which PRBs a grant can name: whole groups by a bitmap (type 0), or one row of them by a number (type 1).

TS 38.214 5.1.2.2 (downlink) and 6.1.2.2 (uplink). Type 0 costs what does not fill a group; type 1 has to be one row,
which costs nothing here: a slot's grants lie end to end.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np

from airserve.model import Array
from airserve.network.cell import Cell
from airserve.network.jit import inner


@cache
def _rows() -> list[dict[str, int]]:
    text = (files("airserve.network") / "tables" / "ts38214_5_1_2_2_1_1.json").read_text("utf-8")
    rows: list[dict[str, int]] = json.loads(text)["rows"]
    return rows


def group_size(prbs: int, configuration: int = 1) -> int:
    """Nominal PRBs of a group in a bandwidth part of so many: TS 38.214 Table 5.1.2.2.1-1.

    >>> group_size(273), group_size(51), group_size(51, configuration=2)
    (16, 4, 8)
    """
    return next(row[f"configuration_{configuration}"] for row in _rows() if prbs <= row["prbs_at_most"])


def group_sizes(prbs: int, configuration: int = 1, start: int = 0) -> Array:
    """PRBs of every group, int64: the first and the last may be smaller, TS 38.214 5.1.2.2.1.

    `start` is the bandwidth part's first PRB on the common grid, to which groups are aligned.

    >>> group_sizes(273).tolist()[-2:], group_sizes(10, start=3).tolist()
    ([16, 1], [1, 2, 2, 2, 2, 1])
    """
    size = group_size(prbs, configuration)
    edges = np.arange(start - start % size, start + prbs + size, size).clip(start, start + prbs)
    sizes: Array = np.diff(np.unique(edges)).astype(np.int64)
    return sizes


def indication(first: int, length: int, prbs: int) -> int:
    """Resource indication value (RIV) of `length` PRBs from `first` on, of a bandwidth part: TS 38.214 5.1.2.2.2.

    >>> indication(0, 273, 273), indication(5, 1, 273)
    (545, 5)
    """
    if not 1 <= length <= prbs - first <= prbs:
        raise ValueError(f"PRBs {first} to {first + length - 1} do not lie in a bandwidth part of {prbs}")
    if length - 1 <= prbs // 2:
        return prbs * (length - 1) + first
    return prbs * (prbs - length + 1) + (prbs - 1 - first)


def row(indication: int, prbs: int) -> tuple[int, int]:
    """First PRB and length that a RIV names: the inverse of `indication`.

    >>> row(545, 273)
    (0, 273)
    """
    length, first = indication // prbs + 1, indication % prbs
    return (first, length) if first + length <= prbs else (prbs - 1 - first, prbs - length + 2)


def granularity(cell: Cell) -> int:
    """PRBs of which a cell's grants are multiples; a grant of the whole carrier has the last, smaller group too.

    >>> granularity(Cell(name="hall")), granularity(Cell(name="hall", allocation=0))
    (1, 16)
    """
    return group_size(cell.prbs, cell.rbg_config) if cell.allocation == 0 else 1


@inner
def whole(prbs: int, group: int, most: int) -> int:
    """PRBs of the groups that hold some PRBs, at most the carrier's."""
    return min(-(-prbs // group) * group, most)


@inner
def in_groups(slices: Array, given: Array, group: int, prbs: int) -> None:
    """Make what slices are given whole groups; what a slice lacks of one, it has in a later slot."""
    left, most = prbs // group, group * slices.size  # that can be owed, also where a carrier's last group is small
    for k in range(slices.size):
        if given[k] == prbs:
            return
        owed = given[k] + slices[k].carried
        groups = min(owed // group, left)
        left -= groups
        slices[k].carried = min(owed - groups * group, most) if slices[k].need > given[k] else 0
        given[k] = groups * group
