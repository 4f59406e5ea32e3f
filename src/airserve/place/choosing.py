"""Which engine runs a Model on this machine: those that are installed are timed in turn, and the registry records it.

onnxruntime stays unless another is quicker by a tenth with the same answers; with bfloat16, which changes them a
little, by a quarter, and where the score on the Model's own samples holds. `airserve serve` opens a Model of the
registry as it is recorded for the machine that it serves on.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from airserve.contract import from_plain, to_plain
from airserve.model import Model, ModelError, Runtime, Samples
from airserve.registry import Registry

RUNTIMES = (Runtime(), Runtime("openvino"), Runtime("openvino", "bf16"))  # the first is the reference
WORTH = {"": 0.9, "bf16": 0.75}  # of the reference's seconds, at most
AGREES = 1e-4  # of the largest output: what another order of the same sums may differ by
SCORE_DROP = 0.005  # what bfloat16 may cost


@dataclass(frozen=True)
class Timed:
    """A runtime's median seconds for one row, and how it compares: `error` is relative to the largest output."""

    runtime: Runtime
    seconds: float
    error: float
    score_drop: float | None  # None without samples
    chosen: bool = False


def choose(
    model: Model,
    parent: Model,
    samples: Callable[[], Samples | None],
    *,
    registry: Registry,
    fresh: bool = False,
) -> tuple[Timed, ...]:
    """Time the runtimes that are installed, or remember it; one is chosen and recorded.

    `samples` gives those to score on. Nothing where onnxruntime is the only engine: there is no choice.
    Raises `ModelError`.
    """
    if not any(engine_version(runtime.engine) for runtime in RUNTIMES[1:]):
        return ()
    key = _key(model)
    kept = None if fresh else registry.kept(key)
    if kept is None:
        kept = to_plain(_measure(model, parent, samples()))
        registry.keep(key, kept)
    return tuple(from_plain(Timed, one) for one in kept)


def chosen(model: Model, registry: Registry) -> Runtime:
    """What was recorded for this machine and the engines that are installed; onnxruntime where nothing was."""
    kept = registry.kept(_key(model)) or ()
    return next((one.runtime for one in (from_plain(Timed, plain) for plain in kept) if one.chosen), Runtime())


def _measure(model: Model, parent: Model, samples: Samples | None) -> tuple[Timed, ...]:
    import numpy as np

    from airserve.model import open_engine
    from airserve.place.measuring import inputs_of, measured_score, timed_in_turn

    opened = []
    for runtime in RUNTIMES:
        try:
            if runtime.engine == "onnxruntime" or engine_version(runtime.engine):
                opened.append((runtime, open_engine(model.path, runtime)))
        except ModelError:  # a graph that this engine does not take
            if not opened:
                raise
    rows = inputs_of(model, samples)
    right = opened[0][1].run(rows[0])
    scale = max(float(np.abs(y.astype(np.float64)).max(initial=0.0)) for y in right) or 1.0
    seconds = timed_in_turn([(engine.run, rows[0]) for _, engine in opened])
    found: list[Timed] = []
    before = None
    for (runtime, engine), taken in zip(opened, seconds, strict=True):
        error = max(
            float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
            for a, b in zip(engine.run(rows[0]), right, strict=True)
        )
        score = (
            measured_score(model, parent, engine, samples)[1] if runtime == RUNTIMES[0] or runtime.precision else None
        )
        before = score if before is None else before
        drop = None if score is None or before is None else before - score
        found.append(Timed(runtime, float(np.median(taken)), error / scale, drop))
    best = min((one for one in found if _may(one, found[0])), key=lambda one: one.seconds)
    return tuple(Timed(one.runtime, one.seconds, one.error, one.score_drop, one is best) for one in found)


def _may(one: Timed, reference: Timed) -> bool:
    """Whether a runtime may be chosen."""
    if one.runtime == reference.runtime:
        return True
    if one.seconds > WORTH[one.runtime.precision] * reference.seconds:
        return False
    if one.runtime.precision:
        return one.score_drop is not None and one.score_drop <= SCORE_DROP
    return one.error <= AGREES


def engine_version(engine: str) -> str:
    """The version of an engine's package, "" where it is not installed."""
    try:
        return version(engine)
    except PackageNotFoundError:
        return ""


def _key(model: Model) -> str:
    """Names all that the choice depends on."""
    parts = (1, model.digest, engine_version("onnxruntime"), engine_version("openvino"), machine())
    return f"runtime/{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def machine() -> str:
    """Processor and cores of this machine."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
