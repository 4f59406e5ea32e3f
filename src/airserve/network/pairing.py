"""Multi-user MIMO: which devices share the same PRBs, on one layer or two each, and at what SINR.

Semi-orthogonal user selection of Yoo and Goldsmith 2006 (IEEE JSAC 24(3)), by the sum of proportional-fair metrics;
zero-forcing; equal power for each layer down, each device's own power up. How alike two devices' channels are is worked
out from the two transmit directions that a trace holds: the overlap tr(R S) / (tr R tr S) of their covariances R and S,
which is what two channels of the band have in common in the mean. docs/fidelity.md holds it against zero-forcing on
channels.
"""

from __future__ import annotations

from math import log10, sqrt
from typing import NamedTuple

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import EFFICIENCY, THRESHOLD_DB, highest, sinr_db, snr_db
from airserve.network.buffers import DOWN, NONE, Config, State, waiting
from airserve.network.cell import Cell
from airserve.network.jit import inner
from airserve.network.radio import Trace, TraceError

MOST = 8  # layers on the same PRBs: ports of one symbol of DM-RS, enhanced type 1 (Release 18, TS 38.211 7.4.1.1.2)
LAYERS = 2, 1  # of a device in a group at most, by direction: down, as many as a trace holds directions
CANDIDATES = 16  # that are looked at: those of highest metric
CLEAR = 0.4  # of a channel's power that has to lie beside the channels of those chosen before: "semi-orthogonal"

CANDIDATE = np.dtype(
    [
        ("flow", "i8"),
        ("block", "i8"),  # to be sent again; NONE: new data
        ("place", "i8"),  # in the group, from 0; NONE: not in it
        ("layers", "i8"),  # in the group
        ("clear", "f8", (2,)),  # part of its power beside the channels of the others, on one layer and on two
        ("leak", "f8"),  # SNR at which all its antennas hear, of the others' layers, what CSI has wrong
        ("best_place", "i8"),  # in the best group so far
        ("best_layers", "i8"),
        ("mcs", "i8"),
        ("shift_db", "f8"),  # of its SNR on so many layers, by being in the group
    ],
    align=True,
)


class Beams(NamedTuple):
    """What a cell knows of its devices' channels in space, by row and snapshot of the trace; empty without `mu`."""

    vector: Array  # complex64 (rows, snapshots, 2, ports): the directions, unit vectors
    share: Array  # float32 (rows, snapshots, 2, 2): of one layer, and of two, how much lies in each direction
    error: Array  # float32 (rows, snapshots): SNR of all that CSI has wrong, over all ports and antennas


def beams(cell: Cell, trace: Trace) -> Beams:
    """Of a trace. Raises `TraceError` where it was made without them."""
    if cell.mimo == "su":
        return Beams(
            np.zeros((0, 1, 2, 1), np.complex64), np.zeros((0, 1, 2, 2), np.float32), np.zeros((0, 1), np.float32)
        )
    if trace.snr_all_db is None or trace.snr_direction_db is None or trace.csi_error_db is None:
        raise TraceError(
            f"cell {cell.name}: this trace of {trace.scenario} does not say how channels lie to each other, as "
            "mimo: mu needs; make it again with `airserve traces`, or choose mimo: su."
        )
    part = 10 ** ((trace.snr_direction_db - trace.snr_all_db[..., None].astype(np.float64)) / 10)
    part /= np.maximum(part.sum(axis=-1, keepdims=True), 1.0)  # whole dB add up to more than all here and there
    error = 10 ** ((trace.snr_all_db.astype(np.float64) + trace.csi_error_db) / 10)
    return Beams(
        np.ascontiguousarray(trace.directions(), np.complex64),
        shares(part).astype(np.float32),
        error.astype(np.float32),
    )


def shares(part: Array) -> Array:
    """How much of one layer, and of two, lies in two directions (..., 2, 2), by their part of the power (..., 2).

    One layer lies where the power does. Of two, which are orthogonal, a direction holds no more than one.

    >>> shares(np.array([0.75, 0.125])).tolist()
    [[0.75, 0.125], [1.0, 0.5]]
    """
    first = np.minimum(2 * part[..., 0], 1)
    second = np.minimum((2 - first) * part[..., 1] / np.maximum(1 - part[..., 0], 1e-9), 1)
    return np.stack([part, np.stack([first, second], -1)], -2)


def products(one: Array, other: Array) -> tuple[float, float, float, float]:
    """Squared sizes of the inner products of the directions of two devices (2, ports): 1 1, 1 2, 2 1 and 2 2.

    >>> up = np.eye(2, 4)
    >>> [float(size) for size in products(up, np.roll(up, 1))]
    [0.0, 0.0, 1.0, 0.0]
    """
    r11, i11, r12, i12, r21, i21, r22, i22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for p in range(one.shape[1]):
        a, b, x, y = one[0, p], one[1, p], other[0, p], other[1, p]
        r11 += a.real * x.real + a.imag * x.imag
        i11 += a.real * x.imag - a.imag * x.real
        r12 += a.real * y.real + a.imag * y.imag
        i12 += a.real * y.imag - a.imag * y.real
        r21 += b.real * x.real + b.imag * x.imag
        i21 += b.real * x.imag - b.imag * x.real
        r22 += b.real * y.real + b.imag * y.imag
        i22 += b.real * y.imag - b.imag * y.real
    return r11 * r11 + i11 * i11, r12 * r12 + i12 * i12, r21 * r21 + i21 * i21, r22 * r22 + i22 * i22


def overlap(
    common: tuple[float, float, float, float], one: Array, other: Array, layers: int, others: int, ports: int
) -> float:
    """Part of the power of a device's layers that lies in the layers of another: 0 to 1.

    Of the `products` of their directions and what lies in these (`shares`, (2,)) of so many layers of each. What lies
    in neither of a device's directions is taken to lie anywhere.

    >>> up, right = np.eye(2, 4), np.roll(np.eye(2, 4), 1)
    >>> same, other = products(up, up), products(up, right)
    >>> overlap(same, [1, 0], [1, 0], 1, 1, 4), overlap(other, [1, 0], [1, 0], 1, 1, 4)
    (1.0, 0.0)
    >>> overlap(same, [1, 0], [0, 0], 1, 1, 4)
    0.25
    >>> overlap(same, [1, 1], [1, 1], 2, 2, 4), overlap(same, [1, 1], [1, 0], 2, 1, 4)
    (1.0, 0.5)
    """
    a, b, x, y = one[0], one[1], other[0], other[1]
    inside = a * (x * common[0] + y * common[1]) + b * (x * common[2] + y * common[3])
    return float(min((inside + (layers * others - (a + b) * (x + y)) / ports) / layers, 1.0))


def shared_snr(snr: float, clear: float, leak: float, streams: int, antennas: int, layers: int = 1) -> float:
    """SNR of a layer behind a device's receiver when so many streams share PRBs and power, its own `layers` included.

    `snr` is that of its layers when it is alone, `clear` what zero-forcing leaves of its channel, `leak` the sum of the
    SNRs with which the others' streams would come in at full power, since CSI is old. An MMSE receiver rejects part of
    it, with the antennas that its other layers leave: the fixed point of Tse and Hanly 1999 (IEEE Trans. IT 45(2)) for
    so many interferers alike, which is a quadratic equation.

    >>> round(shared_snr(100.0, 1.0, 0.0, 2, 4), 1), round(shared_snr(100.0, 1.0, 1e6, 2, 4), 1)
    (50.0, 37.5)
    """
    others = streams - layers
    signal = snr * clear * layers / streams
    if others == 0:
        return signal
    each = leak / (others * streams)
    linear = signal * (1.0 + each * (others / (antennas - layers + 1) - 1.0))
    return 2.0 * signal * signal / (linear + sqrt(linear * linear + 4.0 * each * signal * signal))


_products, _overlap, _shared_snr = inner(products), inner(overlap), inner(shared_snr)


@inner
def moment(s: State, c: Config, f: int, slot: int) -> int:
    """The snapshot of the trace that is nearest to a slot."""
    last = s.beams.error.shape[1] - 1
    if last == 0:
        return 0
    at = (s.flow[f].offset + slot / c.snapshot) % (2 * last)
    return int((2 * last - at if at > last else at) + 0.5)


@inner
def alike(s: State, c: Config, f: int, f_slot: int, g: int, g_slot: int, others: int) -> tuple[float, float]:
    """Overlaps of the channel of a flow's device, on one layer and on two, with so many layers of another's."""
    a, b, i, j = s.flow[f].row, s.flow[g].row, moment(s, c, f, f_slot), moment(s, c, g, g_slot)
    common, ports = _products(s.beams.vector[a, i], s.beams.vector[b, j]), s.beams.vector.shape[3]
    one, other = s.beams.share[a, i], s.beams.share[b, j, others - 1]
    return float(_overlap(common, one[0], other, 1, others, ports)), float(
        _overlap(common, one[1], other, 2, others, ports)
    )


@inner
def shift_db(s: State, f: int, alone_db: float, clear: float, leak: float, layers: int, streams: int) -> float:
    """What sharing its PRBs does to a flow's SNR on some layers; a base station knows what it receives on."""
    if s.flow[f].direction != DOWN:
        return 10.0 * log10(clear)
    snr = 10.0 ** (alone_db / 10)
    over = leak / 10.0 ** (s.flow[f].rise_db / 10)  # against other cells' interference as well
    return 10.0 * log10(_shared_snr(snr, clear, over, streams, s.flow[f].antennas, layers) / snr)


@inner
def place(s: State, c: Config, chosen: int, at: int, layers: int, candidates: int) -> None:
    """Put a candidate into the group on some layers; it and all others know of each other from now on."""
    s.candidate[chosen].place, s.candidate[chosen].layers = at, layers
    f = s.candidate[chosen].flow
    for i in range(candidates):
        one = s.candidate[i]
        if i == chosen:
            continue
        common = alike(s, c, one.flow, s.flow[one.flow].report, f, s.flow[f].report, layers)
        # The candidate counts those in the group only; it has met these before, as each came in
        one.clear[0] *= max(1.0 - common[0], 1e-6)
        one.clear[1] *= max(1.0 - common[1], 1e-6)
        one.leak += common[0] * s.beams.error[s.flow[one.flow].row, moment(s, c, one.flow, s.flow[one.flow].report)]


@inner
def candidate(s: State, i: int, f: int, block: int) -> None:
    """Make a flow the candidate of some number, outside the group."""
    one = s.candidate[i]
    one.flow, one.block = f, block
    apart(s, i)


@inner
def apart(s: State, i: int) -> None:
    """Take a candidate out of the group."""
    one = s.candidate[i]
    one.place, one.clear[0], one.clear[1], one.leak = NONE, 1.0, 1.0, 0.0


@inner
def most_layers(s: State, i: int, most: int) -> int:
    """Of a candidate in a group, at most so many; a block to be sent again has its own."""
    one = s.candidate[i]
    if one.block != NONE:
        return int(s.block[one.block].layers)
    return int(min(most, s.reported_db.shape[1], s.flow[one.flow].antennas))


@inner
def rate(s: State, c: Config, i: int, layers: int, streams: int, prbs: int) -> int:
    """MCS of a candidate on some layers of so many, by what the base station knows; NONE where none is allowed.

    A block to be sent again has its MCS, and is allowed where it decodes with what was received of it before.
    """
    one = s.candidate[i]
    f = one.flow
    alone_db = s.reported_db[f, layers - 1]
    shift = shift_db(s, f, alone_db, one.clear[layers - 1], one.leak, layers, streams)
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
                if s.flow[s.candidate[i].flow].link == s.flow[f].link:
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
    group stands in `State.candidate`, by `place`, each with its layers and MCS. It is made once with one layer for each
    device and once with up to `LAYERS`, the first of them too.
    """
    candidates = shortlist(s, given)
    best, size = worth(s, 0, alone, elements, prbs) if given == 1 else -np.inf, given
    for i in range(candidates):
        s.candidate[i].best_place = NONE
    s.candidate[0].best_place, s.candidate[0].best_layers = 0, most_layers(s, 0, 1)
    for most in range(1, LAYERS[s.flow[s.candidate[0].flow].direction] + 1):
        for i in range(candidates):
            apart(s, i)
        streams = 0
        for i in range(given):
            layers = most_layers(s, i, most)
            place(s, c, i, i, layers, candidates)
            streams += layers
        best, size = grow(s, c, given, candidates, streams, most, best, size, prbs, quota, elements)
    for i in range(candidates):
        one = s.candidate[i]
        one.place, one.layers = one.best_place, one.best_layers
    return size


@inner
def grow(
    s: State, c: Config, given: int, candidates: int, streams: int, most: int, best: float, size: int,
    prbs: int, quota: int, elements: int,
) -> tuple[float, int]:  # fmt: skip
    """Let a group grow, one device after the other; the most worth of a group so far, and its size.

    Sizes are tried up to the most, for two may be worth less than one on four layers, and eight more. A device that
    wants more than these PRBs comes in only where the first takes all that the slice has: it is served once a slot.
    """
    devices = given
    while True:
        if devices > 1:
            total = value(s, c, candidates, streams, prbs, quota, elements)
            if total > best:
                best, size = total, devices
                for i in range(candidates):
                    one = s.candidate[i]
                    one.best_place, one.best_layers = one.place, one.layers
                    if one.place != NONE:
                        one.mcs = rate(s, c, i, one.layers, streams, prbs)
        chosen, layers, highest_worth = NONE, 0, 0.0
        for i in range(given, candidates):
            one = s.candidate[i]
            if one.place != NONE:
                continue
            for on in range(1, most_layers(s, i, most) + 1):
                if one.clear[on - 1] < CLEAR or streams + on > c.together:
                    continue
                mcs = rate(s, c, i, on, streams + on, prbs)
                if mcs < 0 or (prbs < quota and 8 * waiting(s, one.flow) > on * EFFICIENCY[mcs] * elements * prbs):
                    continue
                worthy = on * EFFICIENCY[mcs] / max(s.flow[one.flow].average, 1e-3)
                if worthy > highest_worth:
                    chosen, layers, highest_worth = i, on, worthy
        if chosen == NONE:
            return best, size
        place(s, c, chosen, devices, layers, candidates)
        devices += 1
        streams += layers


@inner
def value(s: State, c: Config, candidates: int, streams: int, prbs: int, quota: int, elements: int) -> float:
    """Sum of the proportional-fair metrics of a group; none where one would be sent nothing that it can decode."""
    first = s.candidate[0]
    mcs = rate(s, c, 0, first.layers, streams, prbs)
    wide = float(prbs)
    if first.block == NONE and mcs >= 0 and s.flow[first.flow].direction == DOWN:
        wide = min(float(quota), 8 * waiting(s, first.flow) / (first.layers * EFFICIENCY[mcs] * elements))
    total = 0.0
    for i in range(candidates):
        one = s.candidate[i]
        if one.place != NONE:
            mcs = rate(s, c, i, one.layers, streams, prbs)
            if mcs >= 0:
                total += worth(s, i, one.layers * EFFICIENCY[mcs], elements, wide)
            elif one.block == NONE:
                return -np.inf
    return total


@inner
def beside(s: State, c: Config, f: int, b: int, devices: int) -> bool:
    """Take a block to be sent again into a group of others, unless it is too like them."""
    clear, layers = 1.0, s.block[b].layers
    for i in range(devices):
        one = s.candidate[i]
        common = alike(s, c, f, s.flow[f].report, one.flow, s.flow[one.flow].report, s.block[one.block].layers)
        clear *= max(1.0 - common[layers - 1], 1e-6)
    if clear < CLEAR:
        return False
    candidate(s, devices, f, b)
    return True


@inner
def settle_shifts(s: State, c: Config, devices: int, slot: int) -> None:
    """What sharing does to each of a group in the slot in which they are served: channels have moved on since CSI."""
    streams = 0
    for i in range(s.candidate.size):
        if 0 <= s.candidate[i].place < devices:
            streams += s.candidate[i].layers
    for i in range(s.candidate.size):
        one = s.candidate[i]
        if not 0 <= one.place < devices:
            continue
        clear, common = 1.0, 0.0
        for j in range(s.candidate.size):
            other = s.candidate[j]
            if j != i and 0 <= other.place < devices:
                both = alike(s, c, one.flow, slot, other.flow, slot, other.layers)
                clear *= max(1.0 - both[one.layers - 1], 1e-6)
                common += both[0]
        leak = common * s.beams.error[s.flow[one.flow].row, moment(s, c, one.flow, slot)]
        alone_db = snr_db(s, c, one.flow, one.layers, slot) - s.flow[one.flow].rise_db
        one.shift_db = shift_db(s, one.flow, alone_db, clear, leak, one.layers, streams)
