"""Block errors of NR's LDPC code (TS 38.212 5.3.2, 5.4.2) over AWGN, counted offline on Sionna's graph (extra `radio`).

The decoder is that of Sionna's `LDPC5GDecoder(cn_update="boxplus", num_iter=20)`, flooding, messages clipped at 20,
written anew for speed: words lie side by side in memory, and messages of a check node never leave the cache. It gives
the same bits some 25 times as fast (tests/network/test_ldpc.py). `bench/bler.py` makes the tables with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from statistics import NormalDist
from typing import Any

import numba
import numpy as np
from numpy.random import Generator

from airserve.model import Array

ITERATIONS = 20
CLIP = np.float32(20)  # of messages and of channel values, in nats
LANES = 32  # words decoded side by side
LEAST_PROBABILITY = 1 - 1e-7  # of a message from a check node, as in Sionna


@dataclass(frozen=True)
class Code:
    """An LDPC code with its rate matching, as `encode` and `decode` need it."""

    k: int  # bits of a code block, its CRC included
    n: int  # bits sent
    qm: int  # bits a symbol, 2 to 8
    encoder: Any  # sionna.phy.fec.ldpc.LDPC5GEncoder of the word's bits, without its interleaver
    first_edge: Array  # int64 (checks + 1,)
    edge_bit: Array  # int64 (edges,): the bit at the other end of each edge, check by check
    sent: Array  # int64 (n,): which bit of the graph each sent bit is, interleaved
    known: Array  # int64: filler bits, zeros that both ends know


def code(k: int, rate: float, qm: int) -> Code:
    """The code of a block of `k` bits at a code rate, first redundancy version.

    A rate below that of the whole word (1/5, or 1/3 for blocks over 3,840 bits) sends its first bits again, as the
    circular buffer of TS 38.212 5.4.2.1 does (which is longer by a part of the filler). Raises `ImportError` without
    Sionna.
    """
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder

    n = ceil(k / rate / qm) * qm
    encoder = LDPC5GEncoder(k, min(n, (5 if k <= 3840 else 3) * k), check_input=False)
    pruned = LDPC5GDecoder(encoder).pcm.tocsr()
    pruned.sort_indices()
    word = np.r_[2 * encoder.z : k, encoder.k_ldpc : encoder.n_ldpc][: encoder.n]  # the first 2 Z are never sent
    interleaved = np.arange(n).reshape(qm, -1).T.ravel()  # TS 38.212 5.4.2.2
    return Code(
        k, n, qm, encoder, pruned.indptr.astype(np.int64), pruned.indices.astype(np.int64),
        word[interleaved % encoder.n], np.arange(k, encoder.k_ldpc),
    )  # fmt: skip


def count_errors(code: Code, snr_db: float, words: int, rng: Generator) -> int:
    """How many of some random words, sent over AWGN at an Es/N0 in dB, are not decoded."""
    return sum(
        int((decode(code, receive(code, snr_db, sent, rng)) != bits).any(axis=0).sum())
        for bits, sent in (encode(code, min(LANES, words - at), rng) for at in range(0, words, LANES))
    )


def deviation(bler: float) -> float:
    """Widths above the middle of a curve at which BLER has a value: the inverse of Q.

    >>> round(deviation(0.1), 4)
    1.2816
    """
    return -NormalDist().inv_cdf(bler)


def fit(snr_db: Array, words: Array, errors: Array) -> tuple[float, float]:
    """Middle and width in dB of BLER = Q((SNR - middle) / width), most likely for the counts (probit regression).

    Counts that say nothing of the width leave it at the least, 0.02 dB, or the most, 5 dB.

    >>> snr_db = np.array([0.0, 1.0, 2.0])
    >>> words = np.full(3, 1e6)
    >>> [round(x, 3) for x in fit(snr_db, words, words * [0.5, 0.158655, 0.02275])]
    [0.0, 1.0]
    """
    seen = (errors + 0.5) / (words + 1)
    steep = words * seen * (1 - seen)
    slope, at_zero = np.polyfit(snr_db, [deviation(p) for p in seen], 1, w=np.sqrt(steep))
    slope = min(max(slope, 1 / 5), 1 / 0.02)
    middle = -at_zero / slope
    normal = NormalDist()
    for _ in range(50):  # Fisher's scoring
        z = np.clip(slope * (snr_db - middle), -6, 6)
        lost = np.array([normal.cdf(-x) for x in z])
        density = np.array([normal.pdf(x) for x in z])
        weight = words * density**2 / (lost * (1 - lost))
        wrong = (errors / words - lost) / density
        design = np.stack([np.ones_like(z), snr_db - middle], -1)
        step = np.linalg.lstsq(design * np.sqrt(weight)[:, None], -wrong * np.sqrt(weight), rcond=None)[0]
        steeper = min(max(slope + step[1], 1 / 5, slope / 2), 1 / 0.02, slope * 2)
        moved = -step[0] / steeper
        middle, slope = middle + float(np.clip(moved, -1, 1)), float(steeper)
        if abs(moved) < 1e-6 and abs(step[1]) < 1e-6 * slope:
            break
    return float(middle), float(1 / slope)


def encode(code: Code, words: int, rng: Generator) -> tuple[Array, Array]:
    """Random bits, bool (k, words), and what is sent for them, bool (n, words)."""
    import torch

    bits = rng.integers(0, 2, (words, code.k), dtype=np.int8)
    with torch.no_grad():
        word = code.encoder(torch.tensor(bits, dtype=torch.float32)).numpy() > 0.5
    interleaved = np.arange(code.n).reshape(code.qm, -1).T.ravel() % code.encoder.n
    return bits.T.astype(bool), word[:, interleaved].T


def receive(code: Code, snr_db: float, sent: Array, rng: Generator) -> Array:
    """Log likelihood ratios ln P(0)/P(1), float32 (n, words), of sent bits behind QAM (TS 38.211 5.1) and AWGN.

    Even and odd bits of a symbol make its two parts, which are alike and independent.
    """
    half = code.qm // 2
    labels = (np.arange(2**half)[:, None] >> np.arange(half - 1, -1, -1)) & 1
    points = amplitude(labels)
    weights = 1 << np.arange(half - 1, -1, -1)
    noise = np.sqrt(0.5 * 10 ** (-snr_db / 10))
    symbols = sent.reshape(-1, half, 2, sent.shape[1])  # symbol, bit of a part, part, word
    chosen = np.einsum("sbpw,b->spw", symbols.astype(np.int64), weights)
    seen = (points[chosen] + noise * rng.standard_normal(chosen.shape)).astype(np.float32)
    likely = np.exp(-((seen[..., None] - points.astype(np.float32)) ** 2) / np.float32(2 * noise**2))
    likely = np.maximum(likely, 1e-37)
    ratios = [
        np.log(likely[..., labels[:, b] == 0].sum(-1) / likely[..., labels[:, b] == 1].sum(-1)) for b in range(half)
    ]
    return np.stack(ratios, 1).reshape(code.n, -1)


def amplitude(labels: Array) -> Array:
    """One part of a QAM symbol (TS 38.211 5.1.3 to 5.1.6) by its bits (..., half of Qm), of power 1/2.

    >>> amplitude(np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).round(3)
    array([ 0.316,  0.949, -0.316, -0.949])
    """
    bits = labels.shape[-1]
    signs = 1 - 2 * labels
    value = signs[..., -1]
    for b in range(bits - 2, -1, -1):
        value = signs[..., b] * (2 ** (bits - 1 - b) - value)
    return value / np.sqrt(2 * (4**bits - 1) / 3)


def decode(code: Code, ratios: Array) -> Array:
    """Hard bits, bool (k, words), of log likelihood ratios (n, words) after 20 iterations."""
    channel = np.zeros((max(int(code.edge_bit.max()), int(code.sent.max()), code.k) + 1, ratios.shape[1]), np.float32)
    np.add.at(channel, code.sent, ratios)
    channel[code.known] = CLIP
    np.clip(channel, -CLIP, CLIP, out=channel)
    return _propagate(channel, code.first_edge, code.edge_bit, ITERATIONS)[: code.k] <= 0


@numba.njit(fastmath=True, error_model="numpy", nogil=True)
def _propagate(channel, first_edge, edge_bit, iterations):  # type: ignore[no-untyped-def]
    """Sums of messages at bits, float32 (bits, words), after flooding; `channel` as well."""
    words = channel.shape[1]
    one = np.float32(1)
    most = np.float32(LEAST_PROBABILITY)
    message = np.zeros((edge_bit.size, words), np.float32)  # from check to bit
    total, following = channel.copy(), np.empty_like(channel)
    degree = 0
    for check in range(first_edge.size - 1):
        degree = max(degree, first_edge[check + 1] - first_edge[check])
    tanh = np.empty((degree, words), np.float32)
    product = np.empty(words, np.float32)
    for _ in range(iterations):
        following[:] = channel
        for check in range(first_edge.size - 1):
            first, last = first_edge[check], first_edge[check + 1]
            product[:] = one
            for edge in range(first, last):
                of_bit, of_edge, into = total[edge_bit[edge]], message[edge], tanh[edge - first]
                for w in range(words):
                    x = of_bit[w] - of_edge[w]
                    size = min(abs(x), np.float32(20))
                    # e^-size as the 64th power of a Taylor series: no call, so that the loop runs in vector registers
                    y = size * np.float32(-1 / 64)
                    e = one + y * (one + y * (np.float32(1 / 2) + y * (np.float32(1 / 6) + y * (
                        np.float32(1 / 24) + y * (np.float32(1 / 120) + y * np.float32(1 / 720))))))  # fmt: skip
                    e *= e
                    e *= e
                    e *= e
                    e *= e
                    e *= e
                    e *= e
                    t = max((one - e) / (one + e), np.float32(1e-12))
                    t = t if x >= 0 else -t
                    into[w] = t
                    product[w] *= t
            for edge in range(first, last):
                of_edge, into, to_bit = message[edge], tanh[edge - first], following[edge_bit[edge]]
                for w in range(words):
                    p = product[w] / into[w]
                    size = min(abs(p), most)
                    ratio = (one + size) / (one - size)
                    # ln(ratio) by exponent and mantissa, and the series of atanh
                    pattern = np.float32(ratio).view(np.int32)
                    exponent = np.float32((pattern >> np.int32(23)) - np.int32(127))
                    mantissa = np.int32((pattern & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
                    s = (mantissa - one) / (mantissa + one)
                    z = s * s
                    series = np.float32(1 / 5) + z * (np.float32(1 / 7) + z * np.float32(1 / 9))
                    mantissa = np.float32(2) * s * (one + z * (np.float32(1 / 3) + z * series))
                    value = exponent * np.float32(0.6931471805599453) + mantissa
                    value = min(value, np.float32(20))
                    value = value if p >= 0 else -value
                    of_edge[w] = value
                    to_bit[w] += value
        total, following = following, total
    return total
