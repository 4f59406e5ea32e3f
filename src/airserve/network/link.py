"""What a radio link carries: transport blocks, peak rates and block errors.

TS 38.214 5.1.3 (transport blocks), TS 38.212 5.2.2 (code blocks), TS 38.306 4.1.2 (peak rates); block errors from
simulations of the LDPC code, network/tables/ts38212_ldpc_awgn.json.
"""

from __future__ import annotations

import json
from importlib.resources import files
from math import ceil, erfc, exp, frexp, log, log10, pi, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airserve.network.jit import njit

Direction = Literal["up", "down"]

EVM = 0.035  # of 256QAM, at most: TS 38.101-1 6.4.2 for devices, TS 38.104 6.5.2 for base stations
BLER_FLOOR = 1e-6
TAIL = 1e-2  # below this BLER of a code block, log BLER goes on straight: no table has counted enough errors there
REFERENCE_BITS = 2000  # of the code block for which an MCS is chosen
OVERHEAD = {(1, "down"): 0.14, (2, "down"): 0.18, (1, "up"): 0.08, (2, "up"): 0.10}  # TS 38.306 4.1.2


def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("airserve.network") / "tables" / f"{name}.json").read_text("utf-8"))
    return table


def mcs_table(index: Literal[1, 2, 3]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Modulation order (bits a symbol) and code rate of each MCS, TS 38.214 Tables 5.1.3.1-1, -2 and -3.

    >>> qm, rate = mcs_table(1)
    >>> len(qm), int(qm[28]), float(rate[28] * 1024)
    (29, 6, 948.0)
    """
    table = _table(f"ts38214_5_1_3_1_{index}")
    return np.array(table["modulation_order"], np.int64), np.array(table["code_rate_x1024"]) / 1024


def cqi_table(index: Literal[1, 2, 3]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Modulation order and code rate of CQI 1 to 15, TS 38.214 Tables 5.2.2.1-2, -3 and -4.

    >>> qm, rate = cqi_table(2)
    >>> round(float(qm[14] * rate[14]), 4)
    7.4062
    """
    table = _table(f"ts38214_5_2_2_1_{index + 1}")
    return np.array(table["modulation_order"], np.int64), np.array(table["code_rate_x1024"]) / 1024


def waterfalls(index: Literal[1, 2, 3]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Code-block sizes in bits, middles and widths in dB of the BLER curves of an MCS table: three arrays (mcs, size).

    BLER of a code block is Q((SNR - middle) / width), SNR being Es/N0. Sizes ascend, and differ among MCS.

    >>> bits, middle_db, width_db = waterfalls(2)
    >>> bits[27, -2:].tolist()
    [2000.0, 8448.0]
    """
    curves: dict[tuple[int, float], list[tuple[float, float, float]]] = {}
    for curve in _table("ts38212_ldpc_awgn")["curves"]:
        key = curve["modulation_order"], curve["code_rate_x1024"]
        row = float(curve["code_block_bits"]), float(curve["middle_db"]), float(curve["width_db"])
        curves.setdefault(key, []).append(row)
    qm, rate = mcs_table(index)
    found = np.array([sorted(curves[q, r]) for q, r in zip(qm.tolist(), (rate * 1024).tolist(), strict=True)])
    bits, middle_db, width_db = np.ascontiguousarray(np.moveaxis(found, -1, 0))
    return bits, middle_db, width_db


QM, RATE = mcs_table(2)
EFFICIENCY = QM * RATE  # bit/s/Hz of one layer
# The MAC counts on: behind table 2, which has 256QAM, stands table 1 for devices that do not know it
FIRST_64QAM = len(QM)
ALL_QM, ALL_RATE = (np.concatenate(both) for both in zip(mcs_table(2), mcs_table(1), strict=True))
ALL_EFFICIENCY = ALL_QM * ALL_RATE
BITS, MIDDLE_DB, WIDTH_DB = (np.concatenate(both) for both in zip(waterfalls(2), waterfalls(1), strict=True))
SHORTNESS = 1 / np.sqrt(BITS)  # what middles and widths are nearly straight in: Polyanskiy, Poor, Verdu 2010
SLOPE_DB, SLOPE_WIDTH_DB = (
    np.diff(curve, axis=1) / np.diff(SHORTNESS, axis=1) for curve in (MIDDLE_DB, WIDTH_DB)
)  # of each segment between two sizes
TAIL_WIDTHS = -NormalDist().inv_cdf(TAIL)  # how far above the middle the tail begins
# d ln BLER / d(SNR / width) there: the density of the normal distribution over Q
TAIL_SLOPE = exp(-(TAIL_WIDTHS**2) / 2) / sqrt(2 * pi) / TAIL
TBS_BITS = np.array(_table("ts38214_5_1_3_2_1")["tbs_bits"], np.int64)
SMALL_TBS_BITS = TBS_BITS[np.searchsorted(TBS_BITS, np.arange(0, 3825, 8))]  # by information bits, in steps of 8


def threshold_db(mcs: int, target_bler: float = 0.1, code_block_bits: float = REFERENCE_BITS) -> float:
    """SNR in dB at which a code block sent with an MCS of Table 5.1.3.1-2 is lost with a probability.

    Raises `IndexError` for an MCS outside 0 to 27.

    >>> round(threshold_db(20), 1)
    18.6
    """
    if not 0 <= mcs < len(QM):
        raise IndexError(f"MCS {mcs} does not exist in TS 38.214 Table 5.1.3.1-2; it has 0 to {len(QM) - 1}.")
    return _threshold_db(mcs, target_bler, code_block_bits)


def _threshold_db(mcs: int, target_bler: float, code_block_bits: float) -> float:
    """The same for all that the MAC counts."""
    middle_db, width_db = waterfall(mcs, code_block_bits)
    if target_bler >= TAIL:
        return float(middle_db - width_db * NormalDist().inv_cdf(target_bler))
    return float(middle_db + width_db * (TAIL_WIDTHS + log(TAIL / target_bler) / TAIL_SLOPE))


def thresholds_db(target_bler: float) -> NDArray[np.float64]:
    """`threshold_db` of all MCS of Table 5.1.3.1-2, for code blocks of 2,000 bits: what link adaptation goes by.

    Larger blocks need less, but a transport block has many of them: at the same SNR, blocks of 300 bits to 1 Mbit
    are lost with probabilities within a factor of some ten of each other, which the outer loop makes up for.
    """
    return np.array([threshold_db(mcs, target_bler) for mcs in range(len(QM))])


def waterfall(mcs: int, code_block_bits: float) -> tuple[float, float]:
    """Middle and width in dB of the BLER curve of an MCS for code blocks of a size.

    MCS 0 to 27 are those of Table 5.1.3.1-2, those from `FIRST_64QAM` on of Table 5.1.3.1-1.

    Straight in 1 / sqrt(size) between the sizes of the table, and beyond the smallest; at most the largest counts.
    """
    short = max(1 / sqrt(code_block_bits), SHORTNESS[mcs, -1])
    j = SHORTNESS.shape[1] - 2  # most blocks are of the largest size or nearly
    while j > 0 and short > SHORTNESS[mcs, j]:
        j -= 1
    beyond = short - SHORTNESS[mcs, j]
    return MIDDLE_DB[mcs, j] + beyond * SLOPE_DB[mcs, j], WIDTH_DB[mcs, j] + beyond * SLOPE_WIDTH_DB[mcs, j]


_waterfall = njit(waterfall)


@njit
def resource_elements(symbols: int, dmrs: int) -> int:
    """Resource elements of one PRB for data: `symbols` OFDM symbols less `dmrs` elements, TS 38.214 5.1.3.2.

    >>> resource_elements(14, 12)
    156
    """
    return max(0, min(156, 12 * symbols - dmrs))


@njit
def tbs_bits(n_re: int, qm: int, rate: float, layers: int) -> int:
    """Bits of a transport block on `n_re` resource elements (per PRB times PRBs), 1 to 4 layers, TS 38.214 5.1.3.2.

    Zero elements carry zero bits.

    >>> tbs_bits(273 * resource_elements(12, 12), qm=8, rate=948 / 1024, layers=4)
    1081512
    """
    n_info = n_re * rate * qm * layers
    if n_info <= 0:
        return 0
    if n_info <= 3824:
        power = max(3, frexp(n_info)[1] - 7)
        return int(SMALL_TBS_BITS[max(24, int(n_info) >> power << power) >> 3])
    power = frexp(n_info - 24)[1] - 6
    quantised = max(3840, int((n_info - 24) / (1 << power) + 0.5) << power)  # ties go up
    if rate <= 0.25:
        blocks = (quantised + 24 + 3815) // 3816
    elif quantised > 8424:
        blocks = (quantised + 24 + 8423) // 8424
    else:
        blocks = 1
    return 8 * blocks * ((quantised + 24 + 8 * blocks - 1) // (8 * blocks)) - 24


def peak_rate_bps(
    prbs: int, scs_khz: int, layers: int, qm: int, rate: float, direction: Direction, frequency_range: Literal[1, 2] = 1
) -> float:
    """The most that a carrier can carry when all slots go one way, TS 38.306 4.1.2, scaling factor 1, normal prefix.

    >>> round(peak_rate_bps(273, 30, layers=4, qm=8, rate=948 / 1024, direction="down") / 1e6, 2)
    2337.0
    """
    symbols_per_s = 14 * 1000 * scs_khz / 15
    return layers * qm * rate * prbs * 12 * symbols_per_s * (1 - OVERHEAD[frequency_range, direction])


@njit
def code_blocks(bits: int, rate: float) -> tuple[int, int]:
    """How many code blocks a transport block becomes, and the bits of each with its CRC: TS 38.212 7.2, 5.2.2.

    >>> code_blocks(1081512, rate=948 / 1024)
    (129, 8408)
    >>> code_blocks(24, rate=120 / 1024)
    (1, 40)
    """
    whole = bits + (24 if bits > 3824 else 16)
    small_graph = bits <= 292 or rate <= 0.25 or (bits <= 3824 and rate <= 0.67)
    largest = 3840 if small_graph else 8448
    if whole <= largest:
        return 1, whole
    blocks = ceil(whole / (largest - 24))
    return blocks, ceil((whole + 24 * blocks) / blocks)  # whole: TBS are chosen so that it divides


@njit
def code_block_error(snr_db: float, mcs: int, code_block_bits: float) -> float:
    """Probability that one code block (of bits with CRC) is not decoded, at an SNR per layer in dB (EVM applied).

    Counted with 20 iterations of a boxplus decoder down to about 1e-2, below which log BLER goes on straight.

    >>> round(code_block_error(threshold_db(10, 1e-4), 10, 2000), 6)
    0.0001
    """
    middle_db, width_db = _waterfall(mcs, code_block_bits)
    widths = (snr_db - middle_db) / width_db
    if widths <= TAIL_WIDTHS:
        return 0.5 * erfc(widths * sqrt(0.5))
    return TAIL * exp(-TAIL_SLOPE * (widths - TAIL_WIDTHS))


@njit
def bler(snr_db: float, mcs: int, bits: int = REFERENCE_BITS - 16) -> float:
    """Probability that a transport block of some bits is lost, at an SNR per layer in dB (EVM applied).

    It is lost when one of its code blocks is: 1 - (1 - error of one)^blocks, at least 1e-6.

    >>> round(bler(threshold_db(10), 10), 3)
    0.1
    """
    blocks, size = code_blocks(bits, ALL_RATE[mcs])
    lost = code_block_error(snr_db, mcs, size)
    if blocks * lost <= BLER_FLOOR:
        return BLER_FLOOR
    if blocks > 1:
        lost = 1.0 - (1.0 - lost) ** blocks
    return lost


THRESHOLD_DB = thresholds_db(0.1)
ALL_THRESHOLD_DB = np.array([_threshold_db(mcs, 0.1, REFERENCE_BITS) for mcs in range(len(ALL_QM))])


@njit
def with_evm_db(snr_db: float) -> float:
    """SINR in dB behind a transmitter of 3.5 % EVM: 1/SINR = 1/SNR + EVM^2, at most 29.1 dB.

    >>> round(with_evm_db(20.0), 2), round(with_evm_db(60.0), 2)
    (19.5, 29.12)
    """
    return -10.0 * log10(10.0 ** (-snr_db / 10.0) + EVM**2)
