"""A model's first runs: what it takes, and whether requests that come together are better computed together."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from airserve.model import Array, ModelError, Run, Signature, Tensor
from airserve.tensors import DATATYPE, NUMPY

INLINE_S = 1e-3  # work shorter than this runs on the loop when a core is free: a thread hop costs 30 us and more
TRIED = 8  # rows
PAYS = 0.75  # the most of eight single runs' time that one run of eight may take
MOST = 32  # rows that are computed together where nobody says otherwise
AGREE = 1e-4  # of the largest value of a row: sums are taken in another order, and nothing else may differ


def warm_up(name: str, signature: Signature, run: Run) -> float:
    """Seconds of a warm run on zeros (the least of three); infinite where shapes do not allow it.

    Only a first axis may be free, for it counts samples; what other free axes may be, the graph does not say.
    """
    if not signature.inputs or any(t.dtype == "bytes" or -1 in t.shape[1:] for t in signature.inputs):
        return float("inf")
    zeros = [np.zeros([1 if axis < 0 else axis for axis in t.shape], _dtype(t)) for t in signature.inputs]
    taken_s = []
    for _ in range(4):  # the first run allocates
        begun_s = time.perf_counter()
        try:
            run(zeros)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"endpoint {name} fails on zeros of its own shape: {str(error)[:160]}") from None
        taken_s.append(time.perf_counter() - begun_s)
    return min(taken_s[1:])


def rows_apart(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether the first axis, and nothing else, is free in every tensor: it counts samples then."""
    return bool(inputs) and all(
        t.shape[:1] == (-1,) and -1 not in t.shape[1:] and t.dtype not in ("bytes", "bfloat16")
        for t in (*inputs, *outputs)
    )


def batch_of(inputs: Sequence[Tensor], outputs: Sequence[Tensor], run: Run) -> tuple[bool, int]:
    """Whether a row's outputs are the same whatever shares its batch, and how many rows it pays to compute together.

    The first is tried with random rows of very different size: a quantisation or a normalisation over the batch shows
    there. The second is 1 where nothing is gained; it keeps a batch under `INLINE_S`.
    """
    if not rows_apart(inputs, outputs):
        return False, 1
    rows = [_random(tensor) for tensor in inputs]
    singles = [[array[k : k + 1] for array in rows] for k in range(TRIED)]
    try:
        alone_s, alone = _least(lambda: [run(single) for single in singles])
        together_s, together = _least(lambda: run(rows))
    except Exception:  # a first axis that is free by name alone
        return False, 1
    for k, output in enumerate(together):
        apart = np.concatenate([single[k] for single in alone])
        if output.shape != apart.shape or not _agree(apart, output):
            return False, 1
    if together_s > PAYS * alone_s:
        return True, 1
    each_s = max(1e-9, (together_s - alone_s / TRIED) / (TRIED - 1))
    return True, max(1, min(MOST, int((INLINE_S - alone_s / TRIED) / each_s) + 1))


def _least(work: object) -> tuple[float, list[Array]]:
    taken_s, found = [], []
    for _ in range(3):
        begun_s = time.perf_counter()
        found = work()  # type: ignore[operator]
        taken_s.append(time.perf_counter() - begun_s)
    return min(taken_s), found


def _random(tensor: Tensor) -> Array:
    """Rows from a tenth to a hundred in size; whole numbers 0 and 1, which every table has."""
    rng, shape, dtype = np.random.default_rng(0), (TRIED, *tensor.shape[1:]), _dtype(tensor)
    if dtype.kind != "f":
        return rng.integers(0, 2, shape).astype(dtype)
    size = np.logspace(-1, 2, TRIED).reshape(-1, *[1] * (len(shape) - 1))
    return (rng.normal(size=shape) * size).astype(dtype)


def _agree(one: Array, other: Array) -> bool:
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    flat, beside = one.reshape(len(one), -1).astype(np.float64), other.reshape(len(other), -1).astype(np.float64)
    if not np.array_equal(np.isfinite(flat), np.isfinite(beside)):
        return False
    flat, beside = np.nan_to_num(flat, posinf=0, neginf=0), np.nan_to_num(beside, posinf=0, neginf=0)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    return bool((np.abs(flat - beside).max(axis=1, initial=0.0) <= AGREE * largest + 1e-9).all())


def _dtype(tensor: Tensor) -> np.dtype[np.generic]:
    return NUMPY[DATATYPE[tensor.dtype]]
