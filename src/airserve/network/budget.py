"""Where the bits of a carrier go: from TS 38.306's peak rate to an application's bytes, item by item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airserve.network.cell import SLOT_SYMBOLS, Cell
from airserve.network.frame import SUBCARRIERS, pattern, taken, way_of
from airserve.network.headers import BLOCK, PACKET, PACKET_BYTES
from airserve.network.link import ALL_EFFICIENCY, ALL_QM, ALL_RATE, FIRST_64QAM, Direction, peak_rate_bps, tbs_bits


@dataclass(frozen=True)
class Budget:
    """Where the bits of a carrier go, in Mbit/s: `raw_mbps` less all `items` is `goodput_mbps`, to the last bit."""

    raw_mbps: float  # every resource element of every slot, at the MCS and layers
    formula_mbps: float  # TS 38.306 4.1.2, which counts some 14 (down) or 8 % (up) of them as overhead
    items: dict[str, float]  # what each takes, in the order of the slot's making
    goodput_mbps: float  # application bytes of one device that has all PRBs and loses no block


def budget(cell: Cell, direction: Direction, *, layers: int, mcs: int = FIRST_64QAM - 1) -> Budget:
    """Itemise what lies between the peak-rate formula and the bytes of an application, for one saturated device.

    `mcs` is of TS 38.214 Table 5.1.3.1-2, from `FIRST_64QAM` on of Table 5.1.3.1-1; packets are full. TDD's other
    direction and its guard count as an item, for the formula is that of a carrier whose slots all go one way.

    >>> of = budget(Cell(name="hall"), "up", layers=1)
    >>> round(of.raw_mbps), round(of.formula_mbps), round(of.goodput_mbps)
    (679, 625, 112)
    """
    way = way_of(direction)
    slots = pattern(cell)["elements"][:, way]
    seconds = len(slots) * cell.slot_ms / 1e3
    bits = layers * ALL_EFFICIENCY[mcs] / seconds / 1e6  # Mbit/s of an element in the period
    whole = len(slots) * SLOT_SYMBOLS * SUBCARRIERS * cell.prbs
    symbols = np.resize(np.array(cell.symbols), (len(slots), 2))[:, way]
    items = {"other direction and guard": (whole - symbols.sum() * SUBCARRIERS * cell.prbs) * bits}
    for name, elements in taken(cell).items():
        items[name] = float(elements[:, way].sum()) * bits
    left = whole * bits - sum(items.values())
    used = float(slots.sum()) * cell.prbs * bits
    items["elements left over"] = left - used  # of slots too short for data, and by rounding down to whole PRBs
    blocks = [tbs_bits(cell.prbs * int(n), int(ALL_QM[mcs]), float(ALL_RATE[mcs]), layers) for n in slots if n > 0]
    carried = sum(blocks) / seconds / 1e6
    items["transport block sizes"] = used - carried
    for name, nbytes in BLOCK.items():
        items[name] = 8 * nbytes * len(blocks) / seconds / 1e6
        carried -= items[name]
    on_wire = PACKET_BYTES + sum(PACKET.values())
    for name, nbytes in PACKET.items():
        items[name] = carried * nbytes / on_wire
    formula = peak_rate_bps(
        cell.prbs, cell.scs_khz, layers, int(ALL_QM[mcs]), float(ALL_RATE[mcs]), direction, cell.frequency_range
    )
    return Budget(whole * bits, formula / 1e6, items, carried * PACKET_BYTES / on_wire)
