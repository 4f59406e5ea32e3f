"""What a radio link carries: transport blocks, peak rates and block errors. TS 38.214 5.1.3, TS 38.306 4.1.2."""

from __future__ import annotations

import json
from importlib.resources import files
from math import ceil, floor, log2, log10
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airserve.network.jit import njit

Direction = Literal["up", "down"]

EVM = 0.035  # of 256QAM, at most: TS 38.101-1 6.4.2 for devices, TS 38.104 6.5.2 for base stations
BLER_AT_THRESHOLD = 0.1
DECADES_PER_DB = 2.0  # steepness of the waterfall
BLER_FLOOR = 1e-6
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


def gap_db(efficiency: NDArray[np.float64]) -> NDArray[np.float64]:
    """dB that the LDPC code needs beyond Shannon's bound log2(1 + SNR) for BLER 10 %, by bit/s/Hz.

    Between the simulated points the gap is interpolated; below the first it stays; above the last (256QAM) it
    goes on with the slope of the last two, about 0.23 dB a bit. Blocks of 2,000 bits: short blocks need more.

    >>> gap_db(np.array([5.332])).round(2)
    array([2.52])
    """
    table = _table("awgn_ldpc_k2000")
    known = np.array(table["efficiency"])
    gap = np.array(table["snr_db_at_bler_0_1"]) - 10 * np.log10(2**known - 1)
    slope = (gap[-1] - gap[-2]) / (known[-1] - known[-2])
    return np.interp(efficiency, known, gap) + slope * np.maximum(efficiency - known[-1], 0.0)


QM, RATE = mcs_table(2)
EFFICIENCY = QM * RATE  # bit/s/Hz of one layer
THRESHOLD_DB = 10 * np.log10(2**EFFICIENCY - 1) + gap_db(EFFICIENCY)
TBS_BITS = np.array(_table("ts38214_5_1_3_2_1")["tbs_bits"], np.int64)


def threshold_db(mcs: int) -> float:
    """SNR in dB at which a block sent with an MCS of Table 5.1.3.1-2 is lost with probability 10 %.

    Raises `IndexError` for an MCS outside 0 to 27.

    >>> round(threshold_db(20), 1)
    18.5
    """
    if not 0 <= mcs < len(THRESHOLD_DB):
        raise IndexError(f"MCS {mcs} does not exist in TS 38.214 Table 5.1.3.1-2; it has 0 to {len(THRESHOLD_DB) - 1}.")
    return float(THRESHOLD_DB[mcs])


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
        step = 2 ** max(3, floor(log2(n_info)) - 6)
        quantised = max(24, step * floor(n_info / step))
        return int(TBS_BITS[np.searchsorted(TBS_BITS, quantised)])
    step = 2 ** (floor(log2(n_info - 24)) - 5)
    quantised = max(3840, step * floor((n_info - 24) / step + 0.5))  # ties go up
    if rate <= 0.25:
        blocks = ceil((quantised + 24) / 3816)
    elif quantised > 8424:
        blocks = ceil((quantised + 24) / 8424)
    else:
        blocks = 1
    return int(8 * blocks * ceil((quantised + 24) / (8 * blocks)) - 24)


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
def bler(snr_db: float, mcs: int) -> float:
    """Probability that the first transmission of a block is lost, at an SNR per layer in dB (EVM applied).

    An approximation: 0.1 at the threshold, and a decade in every half dB, up to 1 and down to 1e-6. LDPC
    simulations of one code block have 0.3 to 0.9 dB a decade. BLER tables from LDPC simulations will replace it.

    >>> round(bler(threshold_db(10), 10), 3)
    0.1
    """
    decades = -1.0 - DECADES_PER_DB * (snr_db - THRESHOLD_DB[mcs])
    return min(1.0, max(BLER_FLOOR, 10.0**decades))


@njit
def margin_db(target_bler: float) -> float:
    """dB above the threshold at which `bler` is the target; negative for a target above 10 %.

    >>> margin_db(0.01)
    0.5
    """
    return (-1.0 - log10(target_bler)) / DECADES_PER_DB


@njit
def with_evm_db(snr_db: float) -> float:
    """SINR in dB behind a transmitter of 3.5 % EVM: 1/SINR = 1/SNR + EVM^2, at most 29.1 dB.

    >>> round(with_evm_db(20.0), 2), round(with_evm_db(60.0), 2)
    (19.5, 29.12)
    """
    return -10.0 * log10(10.0 ** (-snr_db / 10.0) + EVM**2)


@njit
def uplink_snr_db(full_band_snr_db: float, prbs_granted: int, prbs_total: int) -> float:
    """SINR in dB of an uplink grant of some PRBs, from the SNR of a grant of all PRBs; EVM is applied here.

    The rule: a device sends with full power (23 dBm) whatever its grant, spread evenly over the granted PRBs, so
    a small grant has more power in each. Open-loop power control (TS 38.213 7.1.1, P0 and alpha) is left out:
    in one cell without neighbours it would only lower the SNR of devices that are at the EVM ceiling anyway.

    >>> round(uplink_snr_db(0.0, prbs_granted=27, prbs_total=270), 2)
    9.95
    """
    return with_evm_db(full_band_snr_db + 10.0 * log10(prbs_total / prbs_granted))
