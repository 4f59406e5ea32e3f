"""What devices and base stations draw: relative power, of which a deep sleep draws 1. TR 38.840 8.1, TR 38.864 5.1.

Neither says what one unit is in Watts, and it is not the same of the two. The MAC counts slots (State.ue, State.n);
here these become power.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from airserve.model import Array
from airserve.network import frame
from airserve.network.cell import LEAST_SYMBOLS, SLOT_SYMBOLS, Cell
from airserve.network.sleeping import DEEP, DEEP_TIMES, LIGHT, LIGHT_TIMES, MICRO, rested

COUNTS = ("heard", "sent", "strength", "pucch", "rest")  # of buffers.UE that a device's energy comes from
FULL_MW = 10 ** (23 / 10)  # of a device, power class 3


@cache
def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("airserve.network") / "tables" / f"{name}.json").read_text("utf-8"))
    return table


DEVICE = _table("tr38840_8_1")
STATION = _table("tr38864_5_1")


@dataclass(frozen=True)
class Draw:
    """Relative power of a device by what it does in a slot, TR 38.840 8.1.1 scaled by 8.1.3."""

    deep: float
    light: float
    micro: float
    pdcch: float  # listens, and nothing comes
    pdsch: float  # and something comes
    send_least: float  # PUSCH at 0 dBm
    send_most: float  # at 23 dBm
    pucch: float  # of one symbol, at 0 dBm
    half: float = 0  # 1: it does not listen in a slot in which it sends data


@cache
def draw(cell: Cell, bandwidth_mhz: float = 0, antennas: int = 0, half: bool = False) -> Draw:
    """Of a device with some bandwidth and receive antennas; 0: the cell's.

    Every halving of the antennas takes 30 % off what reception draws, and bandwidth below 100 MHz up to 60 % (FR1);
    TR 38.840 has the step from four to two antennas, from two to one is the same step again. More than the reference's
    draw no more.

    >>> full, redcap = draw(Cell(name="hall")), draw(Cell(name="hall"), 20, 1)
    >>> full.pdsch, full.pdcch, round(redcap.pdsch, 1), redcap.pdcch
    (300.0, 100.0, 58.8, 50)
    """
    of = f"fr{cell.frequency_range}"
    power, reference = DEVICE[of], DEVICE["reference"][of]
    scale = 1.0
    has, wanted = reference["antennas"], antennas or cell.ue_antennas
    while has > wanted:
        scale, has = scale * DEVICE["half_the_antennas"], has // 2
    mhz = min(bandwidth_mhz or cell.bandwidth_mhz, reference["bandwidth_mhz"])
    if cell.frequency_range == 1:
        least = DEVICE["bandwidth_at_20_mhz"]
        scale *= least + (1 - least) * (mhz - 20) / 80
    return Draw(
        power["deep"],
        power["light"],
        power["micro"],
        max(scale * power["pdcch"], DEVICE["least_pdcch"]),
        scale * power["pdsch"],
        power["send_0_dbm"],
        power["send_23_dbm"],
        DEVICE["short_pucch"] * power["send_0_dbm"],
        float(half and cell.duplex == "fdd"),
    )


@dataclass(frozen=True)
class Book:
    """What devices and cells have done up to a slot."""

    slot: int
    devices: dict[str, Array]  # by the names of COUNTS, (ues, ...)
    sent: Array  # int64 (cells,): slots in which each sent data
    prbs_down: Array  # int64 (cells,): on which it did


def book(access: Any, ue: Array, slot: int, sent: Array, prbs_down: Array) -> Book:
    """Of State.ue, with what sleeping devices have slept so far; `access` is the Config's."""
    then = ue.copy()
    rested(access, then, slot)
    return Book(slot, {name: then[name] for name in COUNTS}, sent.copy(), prbs_down.copy())


def since(first: Book, last: Book) -> Book:
    """What was done between two, `slot` being how many slots lie there."""
    return Book(
        last.slot - first.slot,
        {name: last.devices[name] - first.devices[name] for name in COUNTS},
        last.sent - first.sent,
        last.prbs_down - first.prbs_down,
    )


def devices(cell: Cell, draws: Sequence[Draw], done: Book) -> tuple[Array, dict[str, Array]]:
    """Mean relative power of devices, float64 (ues,), over the slots of a book; and the part of these in each state.

    A device that is awake listens in every slot with a downlink, and is in micro sleep where nothing can come. Who
    sends in a slot in which it listens too (FDD) draws for both, less the micro sleep that both contain. A half-duplex
    device does not listen in a slot in which it sends data; a PUCCH, of the last symbol, leaves it the PDCCH before.
    """
    counts, slots = done.devices, done.slot
    rest, heard, sent, pucch = (np.asarray(counts[name], np.float64) for name in ("rest", "heard", "sent", "pucch"))
    asleep = rest[:, [DEEP, LIGHT, MICRO]].sum(axis=1)
    down = float(np.mean(frame.carries(cell, "down")))
    of = {name: np.array([getattr(one, name) for one in draws]) for name in Draw.__dataclass_fields__}
    listened = np.maximum((slots - asleep) * down - heard - of["half"] * sent, 0)
    idle = np.maximum(slots - asleep - listened - heard, 0)  # awake, and no downlink, or no ear for it
    least = 1 / FULL_MW
    # From 0 to 23 dBm a straight line, which TR 38.840 leaves open; below, as at 0 dBm.
    strength = np.maximum(counts["strength"] - least * sent, 0) / (1 - least)  # sums
    sending = of["send_least"] * sent + strength * (of["send_most"] - of["send_least"])
    slots_ms = cell.slot_ms
    total = (
        of["deep"] * rest[:, DEEP]
        + of["light"] * rest[:, LIGHT]
        + of["micro"] * (rest[:, MICRO] + idle)
        + of["pdcch"] * listened
        + of["pdsch"] * heard
        + sending
        - of["micro"] * sent
        + (of["pucch"] - of["micro"]) * pucch
        + DEVICE["transition_energy"]["deep"] * rest[:, DEEP_TIMES] / slots_ms
        + DEVICE["transition_energy"]["light"] * rest[:, LIGHT_TIMES] / slots_ms
    )
    states = {
        "deep_sleep": rest[:, DEEP],
        "light_sleep": rest[:, LIGHT],
        "micro_sleep": rest[:, MICRO] + idle - (sent + pucch if cell.duplex == "tdd" else of["half"] * sent),
        "pdcch": listened,
        "pdsch": heard,
        "pucch": pucch,
        "pusch": sent,
    }
    return total / slots, {name: of_slots / slots for name, of_slots in states.items()}


def station(cell: Cell, sent: float, prbs_down: float, slots: int) -> dict[str, float]:
    """Mean relative power of a base station over some slots, and the parts of the time in which it sends and listens.

    `sent`: slots in which it sent data, on `prbs_down` PRBs altogether. It listens in all slots with an uplink, for
    any device may ask in them, so that micro sleep is the deepest that it comes to: light sleep takes 6 ms. Of the
    reference configurations that with the cell's frequency range and duplex holds.

    >>> bare = Cell(name="hall", tdd="DDDDU", reference_signals=False)
    >>> [station(bare, sent=n, prbs_down=273 * n, slots=100)["power"] for n in (0, 80)]
    [66.0, 246.0]
    """
    fr1, fdd, fr2 = STATION["sets"]
    power = fr2 if cell.frequency_range == 2 else fdd if cell.duplex == "fdd" else fr1
    pattern = frame.pattern(cell)
    symbols = np.resize(np.array(cell.symbols), (len(pattern), 2))
    carries = symbols >= LEAST_SYMBOLS
    signals = frame.taken(cell)
    own = np.sum([signals[name][:, 0] for name in ("SSB", "CSI-RS", "tracking")], axis=0)  # elements
    lit = own > 0
    full = frame.SUBCARRIERS * cell.prbs * np.maximum(symbols[:, 0], 1)
    down_symbols = symbols[carries[:, 0], 0].mean() / SLOT_SYMBOLS if carries[:, 0].any() else 0.0
    per_slot = slots / len(pattern)
    # Slots with data lie evenly over those with a downlink: where signals are sent too, they count once
    there = carries[:, 0].sum() * per_slot
    active = sent + lit.sum() * per_slot * max(0.0, 1 - sent / max(there, 1))
    load = prbs_down / cell.prbs + float((own / full).sum()) * per_slot
    rise = power["down"] - power["micro"]
    down = rise * down_symbols * (STATION["not_by_load"] * active + (1 - STATION["not_by_load"]) * min(load, active))
    up_part = float((symbols[:, 1] * carries[:, 1]).sum() / SLOT_SYMBOLS) * per_slot
    total = power["micro"] * slots + down + (power["up"] - power["micro"]) * up_part
    return {
        "power": round(float(total / slots), 4),
        "sends": round(float(active * down_symbols / slots), 4),
        "listens": round(up_part / slots, 4),
    }
