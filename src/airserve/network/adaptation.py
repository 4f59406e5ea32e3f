"""Link adaptation: delayed CQI reports, the MCS and layers they allow, and an outer loop to the target BLER.

TS 38.214 5.2 (CQI, SRS) and Sampath et al. 1997, "On setting reverse link target SIR" (the outer loop).
"""

from __future__ import annotations

from math import log10

import numpy as np

from airserve.network import control, link
from airserve.network.buffers import NONE, UP, Config, N, State
from airserve.network.jit import inner

REPORT_PERIOD_MS = 20.0  # CSI report (downlink) or sounding (uplink)
REPORT_DELAY_MS = 4.0  # from measurement to use
LOOP_STEP_DB = 0.5  # down after a block that was not decoded; up by target / (1 - target) of it after one that was
LOOP_LIMITS_DB = (-20.0, 3.0)  # a channel that moves on between reports needs the depth of its fades

with_evm_db = link.with_evm_db
PDCCH_DB, PDCCH_LEVELS = control.THRESHOLD_DB, np.array(control.LEVELS)
# Of Table 5.1.3.1-2, and behind it of Table 5.1.3.1-1: a flow has those from `mcs_first` to `mcs_last`
THRESHOLD_DB, EFFICIENCY, QM, RATE = link.ALL_THRESHOLD_DB, link.ALL_EFFICIENCY, link.ALL_QM, link.ALL_RATE


@inner
def snr_db(s: State, c: Config, f: int, layers: int, slot: int) -> float:
    """SNR in dB per layer of a flow in a slot, by the trace: linear between snapshots, forth and back in time."""
    return snr_at_db(s, f, layers, place(s, c, f, slot))


@inner
def place(s: State, c: Config, f: int, slot: int) -> float:
    """Where in its trace a flow is in a slot, in snapshots."""
    last = s.snr_db.shape[2] - 1
    if last == 0:
        return 0.0
    length, at = float(2 * last), s.flow[f].offset + slot / c.snapshot
    at -= length * np.floor(at / length)  # as `%`, which takes four times as long: all of it is exact, for length is
    if at < 0.0:  # whole, but the quotient, which may be one off
        at += length
    elif at >= length:
        at -= length
    return float(length - at if at > last else at)


@inner
def snr_at_db(s: State, f: int, layers: int, at: float) -> float:
    """As `snr_db`, at a place of the trace."""
    flow = s.flow[f]
    trace = s.snr_db[flow.direction, flow.row]
    if trace.shape[0] == 1:
        return float(trace[0, layers - 1] + flow.shift_db)
    i = min(int(at), trace.shape[0] - 2)
    snr = trace[i, layers - 1] * (i + 1 - at) + trace[i + 1, layers - 1] * (at - i)
    return float(snr + flow.shift_db)


@inner
def sinr_db(s: State, c: Config, f: int, snr: float, prbs: int) -> float:
    """SINR in dB behind the transmitter's EVM.

    A device has 23 dBm for the PRBs that it was granted, and sends no more on each than open-loop control allows
    (TS 38.213 7.1.1).
    """
    if s.flow[f].direction == UP:
        open_db = s.flow[f].open_db
        snr += open_db if open_db <= 0.0 else min(10.0 * log10(c.prbs / prbs), open_db)
    return float(with_evm_db(snr))


@inner
def as_on_all(s: State, c: Config, f: int, prbs: int) -> bool:
    """Whether a flow's SINR on some PRBs is that on all: unless its device has more power than it may use on all."""
    return bool(prbs == c.prbs or s.flow[f].direction != UP or s.flow[f].open_db <= 0.0)


@inner
def reach(s: State, c: Config, f: int) -> int:
    """Most PRBs on which a device's power still allows the lowest MCS, by its report: what its headroom tells."""
    flow = s.flow[f]
    spare_db = s.reported_db[f, 0] + flow.olla_db - THRESHOLD_DB[flow.mcs_first]
    return int(min(max(c.prbs * 10 ** (spare_db / 10), 1.0), flow.most))


@inner
def listen(s: State, c: Config, f: int, slot: int) -> None:
    """Bring a flow's CQI report, and the MCS for a grant of all the PRBs that it can have, up to date.

    What follows from a report is worked out once and kept: a flow waits in many slots for each report that it makes.
    """
    flow = s.flow[f]
    measured = max(slot - c.report_delay, 0) // c.report_period * c.report_period
    if flow.report != measured:
        flow.report, at = measured, place(s, c, f, measured)
        for k in range(s.reported_db.shape[1]):
            s.reported_db[f, k] = snr_at_db(s, f, k + 1, at) - flow.rise_db
            s.whole_db[f, k] = sinr_db(s, c, f, s.reported_db[f, k], c.prbs)
    elif flow.olla_db == flow.chosen_db:
        return
    flow.chosen_db = flow.olla_db
    flow.mcs, flow.layers = choose(s, c, f, flow.most)
    flow.needed_bytes = NONE


@inner
def choose(s: State, c: Config, f: int, prbs: int) -> tuple[int, int]:
    """MCS and layers that carry most on some PRBs while the reported SNR, as the outer loop corrects it, allows them.

    A device that clears no threshold is sent the lowest MCS on one layer, and HARQ makes up for it.
    """
    best, mcs_best, layers_best = 0.0, s.flow[f].mcs_first, 1
    whole = as_on_all(s, c, f, prbs)
    for layers in range(1, s.reported_db.shape[1] + 1):
        sinr = s.whole_db[f, layers - 1] if whole else sinr_db(s, c, f, s.reported_db[f, layers - 1], prbs)
        mcs = highest(s, f, sinr + s.flow[f].olla_db)
        if mcs >= 0 and layers * EFFICIENCY[mcs] > best:
            best, mcs_best, layers_best = layers * EFFICIENCY[mcs], mcs, layers
    return mcs_best, layers_best


@inner
def highest(s: State, f: int, sinr: float) -> int:
    """The highest MCS of a flow's table whose threshold is not above an SINR in dB, or -1; thresholds ascend."""
    first = s.flow[f].mcs_first
    low, high = first, s.flow[f].mcs_last + 1
    while low < high:
        middle = (low + high) // 2
        if THRESHOLD_DB[middle] > sinr:
            high = middle
        else:
            low = middle + 1
    return low - 1 if low > first else -1


@inner
def correct(s: State, c: Config, f: int, decoded: bool) -> None:
    """The outer loop: one step for one HARQ feedback of a first transmission."""
    up = LOOP_STEP_DB * c.target_bler / (1 - c.target_bler)
    olla_db = s.flow[f].olla_db + (up if decoded else -LOOP_STEP_DB)
    s.flow[f].olla_db = min(max(olla_db, LOOP_LIMITS_DB[0]), LOOP_LIMITS_DB[1])


@inner
def aggregation(s: State, c: Config, f: int) -> int:
    """Control channel elements of a grant to a flow's device, by the SNR of its last report in the downlink."""
    ue = s.flow[f].ue
    snr = snr_db(s, c, ue, 1, max(s.n[N.slot] - c.report_delay, 0)) - s.flow[ue].rise_db
    level = 0
    while level + 1 < PDCCH_DB.size and snr < PDCCH_DB[level]:
        level += 1
    return int(PDCCH_LEVELS[level])


@inner
def block_bits(elements: int, prbs: int, mcs: int, layers: int) -> int:
    """Bits of a transport block on some PRBs (TS 38.214 5.1.3.2)."""
    return int(link.tbs_bits(elements * prbs, QM[mcs], RATE[mcs], layers))


@inner
def bler_at(snr_db: float, mcs: int, bits: int) -> float:
    """Probability that a transport block of some bits is not decoded at an SNR per layer in dB."""
    return float(link.bler(snr_db, mcs, bits))
