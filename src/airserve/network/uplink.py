"""What an uplink asks and may: scheduling requests on the PUCCH, levels of buffer status, power.

TS 38.213 9.2.4 (scheduling requests) and 7.1.1 (power control), TS 38.321 6.1.3.1 (buffer status reports).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from math import log10

import numpy as np

from airserve.model import Array
from airserve.network import frame
from airserve.network.cell import Cell
from airserve.network.jit import inner
from airserve.network.radio import Trace
from airserve.network.topology import Network

POWER_DBM = 23.0  # of a device, power class 3: TS 38.101-1 6.2.1
NOISE_FIGURE_DB = 5.0  # of the base station, TR 38.802 Table A.2.1-1
NOISE_DBM_HZ = -174.0
BEYOND = 2  # times the last level: what a base station takes for a report of more than that


@cache
def levels(format: str) -> Array:
    """Buffer sizes in bytes that a report can name, int64: TS 38.321 Tables 6.1.3.1-1 (short) and -2 (long).

    A report names the least level that is not below the buffer; "exact" has none.

    >>> levels("short")[[1, 2, 30, 31]].tolist(), levels("exact").tolist()
    ([10, 14, 150000, 300000], [])
    """
    if format == "exact":
        return np.zeros(0, np.int64)
    name = {"short": "ts38321_6_1_3_1_1", "long": "ts38321_6_1_3_1_2"}[format]
    table = json.loads((files("airserve.network") / "tables" / f"{name}.json").read_text("utf-8"))["bytes_at_most"]
    return np.array([*table, BEYOND * table[-1]], np.int64)


@inner
def reported(sizes: Array, nbytes: int) -> int:
    """Bytes that a base station takes a buffer for, by the level reported."""
    if sizes.size == 0:
        return nbytes
    level = int(np.searchsorted(sizes, nbytes))
    return int(sizes[level] if level < sizes.size else sizes[-1])


def request_slots(cell: Cell) -> Array:
    """Slots of a scheduling-request period that have a PUCCH, int64.

    >>> request_slots(Cell(name="hall")).tolist()
    [4, 9, 14, 19, 24, 29, 34, 39]
    """
    cycle = len(cell.symbols)
    uplink = np.flatnonzero(frame.carries(cell, "up"))
    slots: Array = (np.arange(0, request_period(cell), cycle)[:, None] + uplink).ravel()
    return slots


def request_period(cell: Cell) -> int:
    """Slots from one opportunity of a device to its next: whole patterns, near `sr_period_ms`."""
    cycle = len(cell.symbols)
    return cycle * max(1, round(cell.sr_period_ms / cell.slot_ms / cycle))


def askers(cell: Cell) -> int:
    """Devices that the PUCCH has scheduling requests for, TS 38.213 9.2.4.

    >>> askers(Cell(name="hall"))
    1152
    """
    return len(request_slots(cell)) * cell.sr_resources


def heard(network: Network) -> int:
    """Devices that all cells and carriers of a network have scheduling requests for together."""
    return len(network.station_names) * sum(askers(one) for one in network.carriers)


def too_many(cell: Cell, ues: int) -> str:
    """A sentence where the PUCCH has no scheduling requests for so many devices, else nothing.

    >>> too_many(Cell(name="hall"), 1152)
    ''
    """
    there, slots = askers(cell), len(request_slots(cell))
    if ues <= there:
        return ""
    period_ms = request_period(cell) * cell.slot_ms
    return (
        f"cell {cell.name}: its PUCCH carries scheduling requests of {there} devices in {period_ms:g} ms "
        f"({slots} uplink slots of {cell.sr_resources}) and {ues} are there; "
        f"raise sr_period_ms to {period_ms * -(-ues // there):g}, or choose grant: configured."
    )


def open_loop_db(cell: Cell, trace: Trace) -> Array:
    """Power of a PRB by open-loop control against 23 dBm spread over the carrier, in dB, by row of the trace.

    TS 38.213 7.1.1 without closed loop: P0 + 10 lg 2^mu + alpha PL, in dBm. The path loss, antennas included, is what
    the trace's mean SNR on one layer leaves of the power, when the base station combines all its ports.
    """
    prb_db = 10 * log10(cell.prbs)
    noise_dbm = NOISE_DBM_HZ + NOISE_FIGURE_DB + 10 * log10(frame.SUBCARRIERS * cell.scs_khz * 1e3)
    mean_snr_db = 10 * np.log10(np.mean(10 ** (trace.snr_up_db[..., 0].astype(np.float64) / 10), axis=1))
    loss_db = POWER_DBM - prb_db - noise_dbm + 10 * log10(cell.gnb_ports) - mean_snr_db
    wanted_dbm = cell.p0_dbm + 10 * log10(cell.scs_khz / 15) + cell.alpha * loss_db
    open_db: Array = wanted_dbm - (POWER_DBM - prb_db)
    return open_db
