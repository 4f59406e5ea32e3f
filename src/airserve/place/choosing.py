"""Which engine runs a Model on this machine, and on how many threads: timed in turn, and recorded in the registry.

onnxruntime stays unless another is quicker by a tenth with the same answers; with bfloat16, which changes them a
little, by a quarter, and where the score on the Model's own samples holds. More threads are for a worker that has more
cores than one, where they make a run of a millisecond or more shorter by a quarter at least. `airserve serve` opens a
Model of the registry as it is recorded for the machine that it serves on, and for the cores that each worker has.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from airserve.contract import from_plain, to_plain
from airserve.model import Model, ModelError, Runtime
from airserve.registry import Registry
from airserve.samples import Samples

RUNTIMES = (Runtime(), Runtime("openvino"), Runtime("openvino", "bf16"))  # on one thread; the first is the reference
WORTH = {"": 0.9, "bf16": 0.75}  # of the reference's seconds, at most
THREADS_WORTH = 0.75  # of the seconds on fewer threads, at most
THREADS_FROM_S = 1e-3  # a shorter run is over before another thread has woken up
AGREES = 1e-4  # of the largest output: what another order of the same sums may differ by
SCORE_DROP = 0.005  # what bfloat16 may cost


@dataclass(frozen=True)
class Timed:
    """A runtime's median seconds for one row, and how it compares: `error` is relative to the largest output."""

    runtime: Runtime
    seconds: float
    error: float
    score_drop: float | None  # None without samples
    chosen: int = 0  # for a worker with so many cores, up to where another is; 0: never


def choose(
    model: Model,
    parent: Model,
    samples: Callable[[], Samples | None],
    *,
    registry: Registry,
    fresh: bool = False,
) -> tuple[Timed, ...]:
    """Time the runtimes that are installed, or remember it; one is chosen and recorded.

    `samples` gives those to score on. Nothing where onnxruntime is the only engine, and no more threads than one pay.
    Raises `ModelError`.
    """
    if cores() == 1 and not any(engine_version(runtime.engine) for runtime in RUNTIMES[1:]):
        return ()
    key = _key(model)
    kept = None if fresh else registry.kept(key)
    if kept is None:
        kept = to_plain(_measure(model, parent, samples()))
        registry.keep(key, kept)
    found = tuple(from_plain(Timed, one) for one in kept)
    return found if len(found) > 1 else ()


def chosen(model: Model, registry: Registry, threads: int = 1) -> Runtime:
    """What was recorded for this machine, the engines that are installed and a worker that may have so many threads;
    onnxruntime on one where nothing was.
    """
    found = [from_plain(Timed, plain) for plain in registry.kept(_key(model)) or ()]
    may = [one for one in found if 0 < one.chosen <= threads]
    return max(may, key=lambda one: one.chosen).runtime if may else Runtime()


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
    if _lasts_s(lambda: opened[0][1].run(rows[0])) >= THREADS_FROM_S:
        several = [replace(runtime, threads=count) for count in _threads() for runtime, _ in opened]
        opened += [(runtime, open_engine(model.path, runtime)) for runtime in several]
    if len(opened) == 1:
        return (Timed(RUNTIMES[0], 0.0, 0.0, None, 1),)  # nothing to compare with
    scale = max(float(np.abs(y.astype(np.float64)).max(initial=0.0)) for y in right) or 1.0
    threads = [runtime.threads for runtime, _ in opened]
    seconds = timed_in_turn([(engine.run, rows[0]) for _, engine in opened], threads=threads)
    found: list[Timed] = []
    scores: dict[tuple[str, str], float | None] = {}  # by engine and precision: threads do not change them
    for (runtime, engine), taken in zip(opened, seconds, strict=True):
        error = max(
            float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
            for a, b in zip(engine.run(rows[0]), right, strict=True)
        )
        kind = runtime.engine, runtime.precision
        if kind not in scores:
            scored = runtime == RUNTIMES[0] or runtime.precision
            scores[kind] = measured_score(model, parent, engine, samples)[1] if scored else None
        before, score = scores["onnxruntime", ""], scores[kind]
        drop = None if score is None or before is None else before - score
        found.append(Timed(runtime, float(np.median(taken)), error / scale, drop))
    return decided(found)


def decided(found: Sequence[Timed]) -> tuple[Timed, ...]:
    """Those of `found`, the reference first, with what is chosen for a worker of one core, and for more where it
    changes.
    """
    least: dict[int, int] = {}  # by place in `found`, the fewest cores for which it is the best
    best = None
    for count in sorted({one.runtime.threads for one in found}):
        reference = next(one for one in found if one.runtime == replace(found[0].runtime, threads=count))
        may = [k for k, one in enumerate(found) if one.runtime.threads == count and _may(one, reference)]
        quickest = min(may, key=lambda k: found[k].seconds, default=None)
        if quickest is None:
            continue
        if best is None or found[quickest].seconds <= THREADS_WORTH * found[best].seconds:
            best = quickest
            least[best] = count
    return tuple(replace(one, chosen=least.get(k, 0)) for k, one in enumerate(found))


def _may(one: Timed, reference: Timed) -> bool:
    """Whether a runtime may be chosen beside onnxruntime on as many threads."""
    if one.runtime.precision:
        right = one.score_drop is not None and one.score_drop <= SCORE_DROP
    else:
        right = one.error <= AGREES
    quicker = one.seconds <= WORTH[one.runtime.precision] * reference.seconds
    return right and (quicker or one.runtime == reference.runtime)


def _lasts_s(work: Callable[[], object]) -> float:
    taken_s = []
    for _ in range(4):
        begun_s = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - begun_s)
    return min(taken_s)


def _threads() -> list[int]:
    """More than one, and no more than there are cores: 2, 4, 8, ..."""
    return [1 << k for k in range(1, cores().bit_length())]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def engine_version(engine: str) -> str:
    """The version of an engine's package, "" where it is not installed."""
    try:
        return version(engine)
    except PackageNotFoundError:
        return ""


def _key(model: Model) -> str:
    """Names all that the choice depends on."""
    parts = (2, model.digest, engine_version("onnxruntime"), engine_version("openvino"), machine())
    return f"runtime/{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def machine() -> str:
    """Processor and cores of this machine."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
