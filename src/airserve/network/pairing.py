"""Multi-user MIMO: which devices share the same PRBs, one layer each, and at what SINR.

Semi-orthogonal user selection of Yoo and Goldsmith 2006 (IEEE JSAC 24(3)), by the sum of proportional-fair metrics;
zero-forcing; equal power down, each device's own power up. How alike two devices' channels are is worked out from the
two transmit directions that a trace holds: the overlap tr(R S) / (tr R tr S) of their covariances R and S, which is
what two channels of the band have in common in the mean. docs/fidelity.md holds it against zero-forcing on channels.
"""

from __future__ import annotations

from math import log10, sqrt
from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import EFFICIENCY, THRESHOLD_DB, highest, sinr_db, snr_db
from airserve.network.buffers import DOWN, NONE, Config, State, waiting
from airserve.network.jit import inner
from airserve.network.radio import Trace, TraceError
from airserve.network.topology import Cell

MOST = 8  # devices on the same PRBs: ports of one symbol of DM-RS, enhanced type 1 (Release 18, TS 38.211 7.4.1.1.2)
CANDIDATES = 16  # that are looked at: those of highest metric
CLEAR = 0.4  # of a channel's power that has to lie beside the channels of those chosen before: "semi-orthogonal"

CANDIDATE = np.dtype(
    [
        ("flow", "i8"),
        ("block", "i8"),  # to be sent again; NONE: new data
        ("place", "i8"),  # in the group, from 0; NONE: not in it
        ("clear", "f8"),  # part of its power beside the channels of the others
        ("leak", "f8"),  # SNR at which all its antennas hear, of the others' streams, what CSI has wrong
        ("mcs", "i8"),  # in the best group so far
        ("shift_db", "f8"),  # of its SNR on one layer, by being in the group
    ],
    align=True,
)


class Beams(NamedTuple):
    """What a cell knows of its devices' channels in space, by row and snapshot of the trace; empty without `mu`."""

    vector: Array  # complex64 (rows, snapshots, 2, ports): directions, as long as the root of their part of the power
    part: Array  # float32 (rows, snapshots): of the power that is in both
    error: Array  # float32 (rows, snapshots): SNR of all that CSI has wrong, over all ports and antennas


def beams(cell: Cell, trace: Trace) -> Beams:
    """Of a trace. Raises `TraceError` where it was made without them."""
    if cell.mimo == "su":
        return Beams(np.zeros((0, 1, 2, 1), np.complex64), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))
    if trace.snr_all_db is None or trace.snr_direction_db is None or trace.csi_error_db is None:
        raise TraceError(
            f"cell {cell.name}: this trace of {trace.scenario} does not say how channels lie to each other, as "
            "mimo: mu needs; make it again with `airserve traces`, or choose mimo: su."
        )
    part = 10 ** ((trace.snr_direction_db - trace.snr_all_db[..., None].astype(np.float64)) / 10)
    part /= np.maximum(part.sum(axis=-1, keepdims=True), 1.0)  # whole dB add up to more than all here and there
    error = 10 ** ((trace.snr_all_db.astype(np.float64) + trace.csi_error_db) / 10)
    vector = trace.directions() * np.sqrt(part)[..., None]
    return Beams(
        np.ascontiguousarray(vector, np.complex64), part.sum(axis=-1).astype(np.float32), error.astype(np.float32)
    )


def overlap(one: Array, other: Array, one_part: float, other_part: float) -> float:
    """Part of the power that two channels have in common, of `Beams.vector` (2, ports) and `part`: 0 to 1.

    What is in neither's two directions is taken to lie anywhere.

    >>> up = np.eye(2, 4) * [[1], [0]]
    >>> right = np.roll(up, 1)
    >>> [float(overlap(up, *other)) for other in ((up, 1, 1), (right, 1, 1), (right, 1, 0))]
    [1.0, 0.0, 0.25]
    """
    ports = one.shape[1]
    common = (1.0 - one_part * other_part) / ports
    for k in range(2):
        for m in range(2):
            real, imaginary = 0.0, 0.0
            for p in range(ports):
                a, b = one[k, p], other[m, p]
                real += a.real * b.real + a.imag * b.imag
                imaginary += a.real * b.imag - a.imag * b.real
            common += real * real + imaginary * imaginary
    return min(common, 1.0)


def shared_snr(snr: float, clear: float, leak: float, devices: int, antennas: int) -> float:
    """SNR behind a device's receiver when `devices` share PRBs and power, from its `snr` when it is alone on one layer.

    `clear` is what zero-forcing leaves of its channel, `leak` the sum of the SNRs with which the others' streams would
    come in at full power, since CSI is old. An MMSE receiver of some antennas rejects part of it: the fixed point of
    Tse and Hanly 1999 (IEEE Trans. IT 45(2)) for so many interferers alike, which is a quadratic equation.

    >>> round(shared_snr(100.0, 1.0, 0.0, 2, 4), 1), round(shared_snr(100.0, 1.0, 1e6, 2, 4), 1)
    (50.0, 37.5)
    """
    others = devices - 1
    signal = snr * clear / devices
    if others == 0:
        return signal
    each = leak / (others * devices)
    linear = signal * (1.0 + each * (others / antennas - 1.0))
    return 2.0 * signal * signal / (linear + sqrt(linear * linear + 4.0 * each * signal * signal))


_overlap, _shared_snr = inner(overlap), inner(shared_snr)


@inner
def moment(s: State, c: Config, f: int, slot: int) -> int:
    """The snapshot of the trace that is nearest to a slot."""
    last = s.beams.part.shape[1] - 1
    if last == 0:
        return 0
    at = (s.flow[f].offset + slot / c.snapshot) % (2 * last)
    return int((2 * last - at if at > last else at) + 0.5)


@inner
def alike(s: State, c: Config, f: int, f_slot: int, g: int, g_slot: int) -> float:
    """Overlap of the channels of two flows' devices, each in a slot."""
    a, b, i, j = s.flow[f].row, s.flow[g].row, moment(s, c, f, f_slot), moment(s, c, g, g_slot)
    return float(_overlap(s.beams.vector[a, i], s.beams.vector[b, j], s.beams.part[a, i], s.beams.part[b, j]))


@inner
def shift_db(s: State, c: Config, f: int, alone_db: float, clear: float, leak: float, devices: int) -> float:
    """What sharing its PRBs does to a flow's SNR on one layer. A base station knows the channel that it receives on."""
    if s.flow[f].direction != DOWN:
        return 10.0 * log10(clear)
    snr = 10.0 ** (alone_db / 10)
    over = leak / 10.0 ** (s.flow[f].rise_db / 10)  # against other cells' interference as well
    return 10.0 * log10(_shared_snr(snr, clear, over, devices, s.flow[f].antennas) / snr)


@inner
def place(s: State, c: Config, chosen: int, at: int, candidates: int) -> None:
    """Put a candidate into the group; it and all others know of each other from now on."""
    s.candidate[chosen].place = at
    f = s.candidate[chosen].flow
    for i in range(candidates):
        one = s.candidate[i]
        if i == chosen:
            continue
        common = alike(s, c, f, s.flow[f].report, one.flow, s.flow[one.flow].report)
        # The candidate counts those in the group only; it has met these before, as each came in
        one.clear *= max(1.0 - common, 1e-6)
        one.leak += common * s.beams.error[s.flow[one.flow].row, moment(s, c, one.flow, s.flow[one.flow].report)]


@inner
def candidate(s: State, i: int, f: int, block: int) -> None:
    """Make a flow the candidate of some number, outside the group."""
    one = s.candidate[i]
    one.flow, one.block, one.place, one.clear, one.leak = f, block, NONE, 1.0, 0.0


@inner
def rate(s: State, c: Config, i: int, devices: int, prbs: int) -> int:
    """MCS of a candidate in a group of so many, by what the base station knows; NONE where none is allowed.

    A block to be sent again has its MCS, and is allowed where it decodes with what was received of it before.
    """
    one = s.candidate[i]
    f = one.flow
    alone_db = s.reported_db[f, 0]
    shift = shift_db(s, c, f, alone_db, one.clear, one.leak, devices)
    allowed = sinr_db(s, c, f, alone_db + shift, prbs) + s.flow[f].olla_db
    if one.block != NONE:
        again = s.block[one.block]
        return int(again.mcs if 10.0 ** (THRESHOLD_DB[again.mcs] / 10) <= again.snr + 10.0 ** (allowed / 10) else NONE)
    return int(highest(s, f, allowed))


@inner
def worth(s: State, i: int, efficiency: float, elements: int, prbs: float) -> float:
    """Proportional-fair metric of a candidate on some PRBs, by the part of them that it fills."""
    flow = s.flow[s.candidate[i].flow]
    filled = 1.0
    if s.candidate[i].block == NONE:
        filled = min(1.0, 8 * waiting(s, s.candidate[i].flow) / max(efficiency * elements * prbs, 1e-9))
    return float(filled * efficiency / max(flow.average, 1e-3))


@inner
def shortlist(s: State, given: int) -> int:
    """Behind the candidates given, the flows of the first's slice of highest metric; how many there are together."""
    n = given
    first = s.flow[s.candidate[0].flow]
    f = s.active[first.direction, first.slice]
    while f != NONE:
        at = NONE
        if s.flow[f].metric > 0:
            at = n
            for i in range(given):
                if s.candidate[i].flow == f:
                    at = NONE
        if at == CANDIDATES:
            at = given
            for i in range(given + 1, n):
                if s.flow[s.candidate[i].flow].metric < s.flow[s.candidate[at].flow].metric:
                    at = i
            if s.flow[s.candidate[at].flow].metric >= s.flow[f].metric:
                at = NONE
        elif at == n:
            n += 1
        if at != NONE:
            candidate(s, at, f, NONE)
        f = s.flow[f].next
    for i in range(n, CANDIDATES):
        s.candidate[i].place = NONE
    return n


@inner
def gather(s: State, c: Config, given: int, alone: float, prbs: int, quota: int, elements: int) -> int:
    """How many devices are served together on the PRBs of the first candidate: the group of most worth.

    The first `given` candidates are in it in any case; `alone` is the first one's efficiency by itself, on `prbs`. The
    group stands in `State.candidate`, by `place`, each with its MCS. Sizes are tried up to the most, for two may be
    worth less than one on four layers, and eight more. A device that wants more than these PRBs comes in only where
    the first takes all that the slice has: it is served once a slot.
    """
    candidates = shortlist(s, given)
    devices = 0
    for i in range(given):
        place(s, c, i, devices, candidates)
        devices += 1
    best, size = worth(s, 0, alone, elements, prbs) if given == 1 else 0.0, given
    while True:
        if devices > 1:
            mcs = rate(s, c, 0, devices, prbs)
            wide = float(prbs)
            if s.candidate[0].block == NONE and mcs >= 0 and s.flow[s.candidate[0].flow].direction == DOWN:
                wide = min(float(quota), 8 * waiting(s, s.candidate[0].flow) / (EFFICIENCY[mcs] * elements))
            total = 0.0
            for i in range(candidates):
                if s.candidate[i].place != NONE:
                    mcs = rate(s, c, i, devices, prbs)
                    if mcs >= 0:
                        total += worth(s, i, EFFICIENCY[mcs], elements, wide)
                    elif s.candidate[i].block == NONE:
                        total = -np.inf  # it would be sent nothing that it can decode
            if total > best or devices == given:
                best, size = total, devices
                for i in range(candidates):
                    if s.candidate[i].place != NONE:
                        s.candidate[i].mcs = rate(s, c, i, devices, prbs)
        if devices == min(candidates, c.together):
            break
        chosen, most = NONE, 0.0
        for i in range(given, candidates):
            one = s.candidate[i]
            if one.place != NONE or one.clear < CLEAR:
                continue
            mcs = rate(s, c, i, devices + 1, prbs)
            if mcs < 0:
                continue
            if prbs < quota and 8 * waiting(s, one.flow) > EFFICIENCY[mcs] * elements * prbs:
                continue
            value = EFFICIENCY[mcs] / max(s.flow[one.flow].average, 1e-3)
            if value > most:
                chosen, most = i, value
        if chosen == NONE:
            break
        place(s, c, chosen, devices, candidates)
        devices += 1
    return size


@inner
def beside(s: State, c: Config, f: int, b: int, devices: int) -> bool:
    """Take a block to be sent again into a group of others, unless it is too like them."""
    clear = 1.0
    for i in range(devices):
        g = s.candidate[i].flow
        clear *= max(1.0 - alike(s, c, f, s.flow[f].report, g, s.flow[g].report), 1e-6)
    if clear < CLEAR:
        return False
    candidate(s, devices, f, b)
    return True


@inner
def settle_shifts(s: State, c: Config, devices: int, slot: int) -> None:
    """What sharing does to each of a group in the slot in which they are served: channels have moved on since CSI."""
    for i in range(s.candidate.size):
        one = s.candidate[i]
        if not 0 <= one.place < devices:
            continue
        clear, common = 1.0, 0.0
        for j in range(s.candidate.size):
            if j != i and 0 <= s.candidate[j].place < devices:
                both = alike(s, c, one.flow, slot, s.candidate[j].flow, slot)
                clear *= max(1.0 - both, 1e-6)
                common += both
        leak = common * s.beams.error[s.flow[one.flow].row, moment(s, c, one.flow, slot)]
        rise_db = s.flow[one.flow].rise_db
        one.shift_db = shift_db(s, c, one.flow, snr_db(s, c, one.flow, 1, slot) - rise_db, clear, leak, devices)
