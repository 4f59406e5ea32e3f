"""The slots of a cell: what control channels and reference signals take of them, and what is left for data.

TS 38.211 (PDCCH, SSB, CSI-RS, DM-RS, PRACH), TS 38.213 4.1 and 11.1 (SSB and TDD patterns), TS 38.321 5.1 (PRACH).
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from math import lcm
from typing import Literal

import numpy as np

from airserve.model import Array
from airserve.network.cell import LEAST_SYMBOLS, SLOT_SYMBOLS, Cell
from airserve.network.link import Direction, resource_elements

SUBCARRIERS = 12  # of a PRB
PDCCH_SYMBOLS = 2  # at the start of a slot with a downlink
PUCCH_SYMBOLS = 1  # at the end of an uplink slot, for short PUCCH and SRS
DMRS_ELEMENTS = 12  # of a PRB in a slot: one front-loaded symbol, of which no element carries data
SSB_ELEMENTS = 20 * SUBCARRIERS * 4  # a block of 20 PRBs and 4 symbols
TRACKING_ELEMENTS = 6  # of a PRB, in two slots that follow: CSI-RS for tracking, 2 symbols of density 3
PRACH_PRBS = 12  # of a short preamble: 139 subcarriers of the data's spacing
SIGNALS = ("PDCCH", "PUCCH and SRS", "DM-RS", "SSB", "CSI-RS", "tracking", "PRACH")
PERIOD_MS = 20.0  # of SSB, CSI-RS and tracking

SLOT = np.dtype(  # of the pattern
    [
        ("elements", "i8", (2,)),  # resource elements for data of a PRB, down and up
        ("before", "i8", (2,)),  # slots of the pattern before this one that have data, by direction
        ("next_down", "i8"),  # slots until the next with a PDSCH
        ("next_up", "i8"),  # slots until the next with a PUSCH
    ],
    align=True,
)


def processing_symbols(cell: Cell) -> tuple[float, float]:
    """N1 and N2 in symbols: to decode a PDSCH, to prepare a PUSCH (TS 38.214 Tables 5.3-1/-2 and 6.4-1/-2).

    >>> processing_symbols(Cell(name="hall")), processing_symbols(Cell(name="hall", ue_capability=2))
    ((10.0, 12.0), (4.5, 5.5))
    """
    key, scs = f"capability_{cell.ue_capability}", str(cell.scs_khz)
    decode, prepare = (_table(clause)[key][scs] for clause in ("ts38214_5_3", "ts38214_6_4"))
    return float(decode), float(prepare)


@lru_cache(maxsize=64)
def pattern(cell: Cell) -> Array:
    """What every slot has for data, as SLOT, over the least time after which all repeats.

    A resource element that a signal takes on some PRBs only (SSB, PRACH) is taken from all of them evenly.

    >>> pattern(Cell(name="hall"))["elements"][5:10].tolist()
    [[126, 0], [132, 0], [132, 0], [84, 0], [0, 144]]
    """
    signals = taken(cell)
    found = np.zeros(len(signals["PDCCH"]), SLOT)
    symbols = np.resize(np.array(cell.symbols), (len(found), 2))
    elements = cell.prbs * SUBCARRIERS * symbols - sum(signals.values())
    for slot, way in np.argwhere(symbols >= LEAST_SYMBOLS):
        per_prb = elements[slot, way] // cell.prbs
        found["elements"][slot, way] = resource_elements(SLOT_SYMBOLS, SLOT_SYMBOLS * SUBCARRIERS - per_prb)
    there = found["elements"] > 0
    found["before"] = np.cumsum(there, axis=0) - there
    found["next_down"] = _slots_until(there[:, 0])
    found["next_up"] = _slots_until(there[:, 1])
    found.flags.writeable = False
    return found


def carries(cell: Cell, direction: Direction) -> tuple[bool, ...]:
    """Whether each slot of the cell's own pattern has data in a direction.

    >>> carries(Cell(name="hall"), "up")
    (False, False, False, False, True)
    """
    return tuple(symbols[way_of(direction)] >= LEAST_SYMBOLS for symbols in cell.symbols)


@lru_cache(maxsize=64)
def taken(cell: Cell) -> dict[str, Array]:
    """Resource elements of the whole carrier that each signal takes, int64 (slots of the period, 2)."""
    in_period = round(PERIOD_MS / cell.slot_ms)
    slots = lcm(len(cell.symbols), in_period)
    symbols = np.resize(np.array(cell.symbols), (slots, 2))
    data = symbols >= LEAST_SYMBOLS
    none = np.zeros((slots, 2), np.int64)
    signals = {name: none.copy() for name in SIGNALS}
    prb_symbol = SUBCARRIERS * cell.prbs
    signals["PDCCH"][:, 0] = np.where(data[:, 0], PDCCH_SYMBOLS * prb_symbol, 0)
    signals["PUCCH and SRS"][:, 1] = np.where(data[:, 1], PUCCH_SYMBOLS * prb_symbol, 0)
    signals["DM-RS"][data] = DMRS_ELEMENTS * cell.prbs
    most = (symbols - [PDCCH_SYMBOLS, PUCCH_SYMBOLS]) * SUBCARRIERS * cell.prbs - signals["DM-RS"]
    if cell.reference_signals:
        full = np.flatnonzero(symbols[:, 0] == symbols[:, 0].max())
        for first in range(0, slots, in_period):
            down = full[(full >= first) & (full < first + in_period)]
            for i, (name, elements) in enumerate(
                (
                    ("SSB", SSB_ELEMENTS),
                    ("CSI-RS", cell.gnb_ports * cell.prbs),
                    ("tracking", TRACKING_ELEMENTS * cell.prbs),
                    ("tracking", TRACKING_ELEMENTS * cell.prbs),
                )
            ):
                if len(down):
                    signals[name][down[i % len(down)], 0] += elements
        up = np.flatnonzero(data[:, 1])
        occasions = {int(up[np.searchsorted(up, first) % len(up)]) for first in range(0, slots, _prach_slots(cell))}
        prbs = min(PRACH_PRBS, cell.prbs)
        for slot in occasions:
            signals["PRACH"][slot, 1] = prbs * most[slot, 1] // cell.prbs
    return signals


def _prach_slots(cell: Cell) -> int:
    return max(1, round(cell.prach_period_ms / cell.slot_ms))


def _slots_until(wanted: Array) -> Array:
    """How many slots until the next wanted one, for every place in a pattern.

    >>> _slots_until(np.array([True, False, False])).tolist()
    [0, 2, 1]
    """
    n = len(wanted)
    at = np.flatnonzero(wanted)
    return (at[np.searchsorted(at, np.arange(n)) % len(at)] - np.arange(n)) % n


def way_of(direction: Direction) -> Literal[0, 1]:
    return 1 if direction == "up" else 0


@lru_cache(maxsize=8)
def _table(name: str) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = json.loads(
        (files("airserve.network") / "tables" / f"{name}.json").read_text("utf-8")
    )
    return table
