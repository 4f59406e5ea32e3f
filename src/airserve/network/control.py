"""The PDCCH: how many control channel elements a slot has, and how many a grant takes at a device's SNR.

TS 38.211 7.3.2 (elements, aggregation levels), TS 38.213 10.1. Polyanskiy 2010 (normal approximation).
"""

from __future__ import annotations

from math import e, log2, sqrt
from statistics import NormalDist

import numpy as np

from airserve.network import frame
from airserve.network.cell import Cell

LEVELS = (1, 2, 4, 8, 16)  # control channel elements of one grant
GROUP_PRBS = 6  # a CORESET comes in groups of 6 PRBs, an element in 6 resource-element groups
ELEMENT_SYMBOLS = 54  # resource elements of an element that carry bits, beside its DM-RS
DCI_BITS = 69  # formats 1_1 and 0_1 with 24 bits of CRC, about
MISSED = 0.01  # probability that a device misses its grant
MARGIN_DB = 3.0  # for the polar code's distance from the bound, and for a channel that has moved on


def elements(cell: Cell) -> int:
    """Control channel elements of a slot with a downlink.

    >>> elements(Cell(name="hall"))
    90
    """
    return max(1, cell.prbs // GROUP_PRBS) * frame.PDCCH_SYMBOLS


def shares(cell: Cell) -> tuple[int, int]:
    """Elements for the grants of one downlink slot, and of one uplink slot.

    Each direction has half of a slot's. Where uplink slots outnumber those that can announce them, they share.

    >>> shares(Cell(name="hall")), shares(Cell(name="hall", tdd="DSUUU"))
    ((45, 45), (45, 30))
    """
    half = elements(cell) / 2
    down, up = (sum(frame.carries(cell, way)) for way in ("down", "up"))
    return max(1, int(half)), max(1, int(half * min(1.0, down / up)))


def threshold_db(level: int) -> float:
    """Least SNR in dB at which a grant of so many elements is received, margin included.

    >>> [round(threshold_db(level), 1) for level in LEVELS]
    [6.3, 2.2, -1.3, -4.5, -7.7]
    """
    n, low_db, high_db = ELEMENT_SYMBOLS * level, -30.0, 30.0
    for _ in range(60):
        snr_db = (low_db + high_db) / 2
        snr = 10 ** (snr_db / 10)
        dispersion = (1 - (1 + snr) ** -2) * log2(e) ** 2
        bits = n * log2(1 + snr) - sqrt(n * dispersion) * NormalDist().inv_cdf(1 - MISSED) + log2(n) / 2
        low_db, high_db = (snr_db, high_db) if bits < DCI_BITS else (low_db, snr_db)
    return high_db + MARGIN_DB


THRESHOLD_DB = np.array([threshold_db(level) for level in LEVELS])
