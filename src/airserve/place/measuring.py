"""What every way to run a variant costs on this machine: seconds, bytes, memory and score, measured.

Graphs are opened by `model.Engine`, as a server opens them, and bytes are those of `wire`, headers included, on the
Model's own samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from airserve import answers, wire
from airserve.model import PREPROCESS, Array, Engine, Model, ModelError, OpenVino, Run, Tensor
from airserve.place.cutting import Cut, Scale, cuts, read, scaling, split, tapped, working_bytes
from airserve.samples import Samples

RUNS = (12, 64)  # at least and at most, of each graph; the whole is run as often beside every cut
RUN_FOR_S = 0.1  # how long a graph is run, once it has run often enough
UNDISTURBED = 1.1  # wall over CPU time: beyond it the thread had lost the processor
DISTURBED = 1.5  # of the quickest tenth: beyond it somebody else had the core's other thread, its cache, or the core
CHANNEL_VALUES = (
    4000  # of a channel in the calibration rows: with fewer its range is unknown, and the tensor's is taken
)
ROUNDS = 3  # of the runs of a whole
APART_S = 0.01  # between runs of a whole, as requests come: back to back a small graph takes a third of that
SIZED_ROWS = 16  # rows of samples whose bytes are measured at a cut
SCORED_ROWS = 1000  # of samples, at most, behind a score
HOST = "127.2.0.1:7801"
SERVER_TIMING = 'queue;dur=0.250;desc="mast", compute;dur=9.876;desc="mast"'


@dataclass(frozen=True)
class Way:
    """One way to run a variant: whole ("none"), whole behind its input ("input"), or cut; for one row.

    Seconds are samples at speed 1. `packed` is with zstd as Content-Encoding: no entries where it does not help.
    """

    cut: str
    encoding: str
    at: Cut | None
    scale: Scale | None
    head_s: Array
    tail_s: Array
    bytes_up: Array
    packed_up: Array
    pack_s: float
    unpack_s: float
    handle_s: float  # parse the request and build the response, at the site
    head_mb: float = 0.0  # of memory, when it is cut
    tail_mb: float = 0.0


@dataclass(frozen=True)
class VariantProfile:
    """A variant's ways, and what is the same for all of them."""

    reference: str
    variant: str
    ways: tuple[Way, ...]
    bytes_down: Array
    memory_mb: float  # the file, and the tensors that are live at once
    metric: str  # of answers.judge; "" without samples
    score: float | None
    before: float | None
    scored: int
    against: float = 1.0  # seconds of the whole by those of fp32, run in turn: the same that stand in `ways`
    fp32_s: float = 0.0  # median of fp32's whole, on which all seconds stand
    rounds_differ: float = 1.0  # how many times: the slowest of the rounds of the whole by the quickest

    def way(self, cut: str, encoding: str = "") -> Way:
        return next(way for way in self.ways if way.cut == cut and encoding in ("", way.encoding))


def measure(
    model: Model,
    parent: Model,
    samples: Samples | None,
    step: Callable[[int, int, str], None] = lambda *_: None,
    fp32_s: float | None = None,
) -> VariantProfile:
    """The profile of one variant; `parent` is its fp32 Model, which gives the answers where there are no labels.

    `fp32_s` are the seconds in the parent's profile, to which those of a variant are in proportion.
    Raises `ModelError` where the graph does not run on its samples.
    """
    graph = read(model.path)
    found = [cut for cut in cuts(graph) if not cut.shadowed]
    working = working_bytes(graph)
    rows = inputs_of(model, samples)
    lows, highs, tensors = _taps(graph, found, model, samples)
    engine = Engine(model.path)
    answers = [engine.run(row) for row in rows[:SIZED_ROWS]]
    outputs = model.signature.outputs
    down = [
        len(wire.infer_response(model.name, str(model.version), list(zip(outputs, answer, strict=True)),
                                server_timing=SERVER_TIMING))
        for answer in answers
    ]  # fmt: skip
    nothing = np.zeros(0)
    beside = None if model.reference == parent.reference else Engine(parent.path).run
    whole_s, fp32_s, differ = wholes(engine.run, rows[0], beside, fp32_s)
    ways = [Way("none", "", None, None, nothing, nothing, nothing, nothing, 0.0, 0.0, 0.0)]
    raw = [list(zip(model.signature.inputs, row, strict=True)) for row in rows]
    sent = _sent(model, raw, answers[0], samples is not None)
    ways.append(Way("input", "raw", None, None, nothing, nothing, **sent))
    if samples is not None and samples.encoded:
        first = PREPROCESS[_function(samples.media)][0].inputs[0]
        pictures = [[(first, np.array([data], dtype=object))] for data in samples.held().encoded or ()]
        sent = _sent(model, pictures, answers[0], False)
        ways.append(Way("input", "jpeg", None, None, nothing, nothing, **sent))
    for i, cut in enumerate(found):
        step(i, len(found), f"profile {model.reference}, cut {cut.name}")
        files = split(graph, cut)
        head, tail = (Engine(half) for half in files)
        head_mb, tail_mb = ((len(half) + working) / 1e6 for half in files)
        turns = [(head.run, rows[0]), (tail.run, head.run(rows[0])), (engine.run, rows[0])]
        head_s, tail_s, beside_s = timed_in_turn(turns)
        # A busy machine slows all three alike, so only their ratios count: the whole's seconds stand for a quiet one.
        head_s, tail_s = head_s / np.median(beside_s), tail_s / np.median(beside_s)
        named = replace(head.signature.outputs[0], shape=(-1, *cut.shape))
        sent = _sent(model, [[(named, x)] for x in tensors[i]], answers[0], samples is not None)
        ways.append(Way(cut.name, "raw", cut, None, head_s, tail_s, **sent, head_mb=head_mb, tail_mb=tail_mb))
        if cut.dtype == "float32" and samples is not None:
            scale = _scale(cut, lows[i], highs[i], samples.calibration)
            named = replace(named, name=f"{cut.tensor}_uint8", dtype="uint8")
            sent = _sent(model, [[(named, scale.encode(x))] for x in tensors[i]], answers[0], True)
            scaled = Way(cut.name, "int8", cut, scale, head_s, tail_s, **sent)
            ways.append(replace(scaled, head_mb=head_mb, tail_mb=tail_mb))
    against = float(np.median(whole_s)) / fp32_s
    by_cut = {cut.name: tensors[i][0] for i, cut in enumerate(found)}
    ways = [_in_seconds(way, whole_s, by_cut.get(way.cut)) for way in ways]
    metric, score, before, scored = measured_score(model, parent, engine, samples)
    memory_mb = (model.path.stat().st_size + working) / 1e6
    return VariantProfile(
        reference=model.reference,
        variant=model.variant,
        ways=tuple(ways),
        bytes_down=np.array(down),
        memory_mb=memory_mb,
        metric=metric,
        score=score,
        before=before,
        scored=scored,
        against=against,
        fp32_s=fp32_s,
        rounds_differ=differ,
    )


def _scale(cut: Cut, low: Array, high: Array, rows: int) -> Scale:
    """By channel where the calibration rows show enough of each; else one for the tensor, which clips less.

    EfficientNet-Lite0, 40 rows: by channel early cuts agree with fp32 on 98.8 to 100 % (one scale: 97.5 to 100 %), and
    the last, of one value a channel, on 90 % (one scale: 100 %).
    """
    if rows * prod(cut.shape[1:]) >= CHANNEL_VALUES:
        return Scale.between(low, high)
    return Scale.between(np.min(low), np.max(high))


def _in_seconds(way: Way, whole_s: Array, x: Array | None) -> Way:
    """A way with its seconds, from the whole's on a quiet machine; with those of the encodings of a cut's tensor x."""
    if way.at is None or x is None:
        return replace(way, head_s=whole_s) if way.cut == "none" else replace(way, tail_s=whole_s)
    quiet_s = float(np.median(whole_s))
    encode_s, decode_s = scaling_s(way.at, way.scale, x) if way.scale else (0.0, 0.0)
    return replace(way, head_s=way.head_s * quiet_s + encode_s, tail_s=way.tail_s * quiet_s + decode_s)


def timed(run: Run, inputs: Sequence[Array], apart_s: float = 0.0) -> Array:
    """Seconds of single runs, shape (n,), after a warm-up of two, as an undisturbed thread has them."""
    return timed_in_turn([(run, inputs)], apart_s)[0]


def timed_in_turn(
    runs: Sequence[tuple[Run, Sequence[Array]]], apart_s: float = 0.0, threads: Sequence[int] | None = None
) -> list[Array]:
    """Seconds of single runs of each, shape (n,): run in turn, so that all have the same moments.

    The engine computes on the calling thread. Where a run's wall time passes its CPU time by a tenth, somebody else
    had the processor meanwhile, and its CPU time stands in; a run that takes far longer than the quickest is left out.
    One that computes on several `threads` waits for the others, so its wall time counts, whoever else is there.
    """
    alone = [count == 1 for count in threads or [1] * len(runs)]
    seconds = np.empty((RUNS[1], len(runs)))
    for run, inputs in [*runs, *runs]:
        run(inputs)
    ends = time.perf_counter() + RUN_FOR_S + RUNS[0] * apart_s * len(runs)
    done = 0
    while done < RUNS[0] or (done < RUNS[1] and time.perf_counter() < ends):
        for k, (run, inputs) in enumerate(runs):
            time.sleep(apart_s)
            t0, c0 = time.perf_counter(), time.thread_time()
            run(inputs)
            c1, t1 = time.thread_time(), time.perf_counter()
            disturbed = alone[k] and t1 - t0 > UNDISTURBED * (c1 - c0) + 2e-5
            seconds[done, k] = c1 - c0 if disturbed else t1 - t0
        done += 1
    return [quick(one) for one in seconds[:done].T]


def quick(seconds: Array) -> Array:
    """Those that take not far longer than the quickest tenth, whose limit is a run that was.

    >>> quick(np.array([1.0, 1.0] + [100.0] * 18))
    array([1., 1.])
    """
    limit_s = DISTURBED * float(np.quantile(seconds, 0.1, method="lower"))
    return np.asarray(seconds[seconds <= limit_s])


def wholes(run: Run, inputs: Sequence[Array], beside: Run | None, fp32_s: float | None) -> tuple[Array, float, float]:
    """Seconds of a whole as requests come, fp32's, and how many times two rounds of them differ.

    A variant is run in turn with fp32, `beside`, and takes so many times `fp32_s`, for which the machine may have been
    slower or quicker then: only their ratio counts, of the middle round. Without it they are those of the quietest.
    """
    turns = [(each, inputs) for each in (run, beside) if each is not None]
    rounds = [timed_in_turn(turns, APART_S) for _ in range(ROUNDS)]
    found = [float(np.median(each[0])) / (float(np.median(each[1])) if beside else 1.0) for each in rounds]
    taken = rounds[np.argsort(found)[len(found) // 2 if beside else 0]]
    beside_s = float(np.median(taken[-1]))
    stands_on_s = fp32_s or beside_s
    return taken[0] * (stands_on_s / beside_s), stands_on_s, max(found) / min(found)


def scaling_s(cut: Cut, scale: Scale, x: Array) -> tuple[float, float]:
    """Seconds that QuantizeLinear and DequantizeLinear add at a cut, each run alone: no engine fuses them there."""
    to_uint8, from_uint8 = (Engine(graph) for graph in scaling(cut, scale))
    encoded = to_uint8.run([x])
    return float(np.median(timed(to_uint8.run, [x]))), float(np.median(timed(from_uint8.run, encoded)))


def halves(way: Way, model: Model) -> tuple[bytes, bytes]:
    """Head and tail of a way that is cut."""
    if way.at is None:
        raise ModelError(f"{model.reference} is not cut when it runs as {way.cut!r}.")
    return split(model.path, way.at, way.encoding, way.scale)


def inputs_of(model: Model, samples: Samples | None) -> list[list[Array]]:
    """Inputs one row at a time: held samples, or zeros where there are none."""
    if samples is not None:
        if len(model.signature.inputs) != 1:
            raise ModelError(f"{model.reference} has {len(model.signature.inputs)} inputs; samples hold one.")
        held = samples.held().inputs[:SCORED_ROWS]
        return [[held[i : i + 1]] for i in range(len(held))]
    return [[_zeros(tensor, model) for tensor in model.signature.inputs]]


def _zeros(tensor: Tensor, model: Model) -> Array:
    if min(tensor.shape[1:], default=1) < 0 or tensor.dtype == "bytes":
        several = len(model.signature.inputs) > 1
        next_step = (
            "samples hold one input, so it can be served but not profiled" if several else "import it with samples"
        )
        raise ModelError(f"{model.reference} has an input of free shape, {tensor.name}; {next_step}.")
    return np.zeros((1, *tensor.shape[1:]), tensor.dtype)


def _taps(
    graph: Any, found: list[Cut], model: Model, samples: Samples | None
) -> tuple[list[Array], list[Array], list[list[Array]]]:
    """Of every cut: low and high by channel over the calibration rows, and its tensors of the first held rows."""
    if not found:
        return [], [], []
    engine = Engine(tapped(graph, found))
    lows: list[Array] = [np.float32(0.0)] * len(found)  # type: ignore[list-item]
    highs = list(lows)
    for i in range(samples.calibration if samples is not None else 0):
        assert samples is not None
        for k, x in enumerate(engine.run([samples.inputs[i : i + 1]])):
            others = (0, *range(2, x.ndim))
            lows[k] = np.minimum(lows[k], x.min(axis=others))
            highs[k] = np.maximum(highs[k], x.max(axis=others))
    shown = [engine.run(row) for row in inputs_of(model, samples)[:SIZED_ROWS]]
    return lows, highs, [[row[k] for row in shown] for k in range(len(found))]


def _sent(
    model: Model, messages: Sequence[Sequence[tuple[Tensor, Array]]], answer: Sequence[Array], pack: bool
) -> dict[str, Any]:
    """Bytes and seconds of the messages that carry these tensors, as fields of Way."""
    plain: list[int] = []
    packed: list[int] = []
    pack_s: list[float] = []
    unpack_s: list[float] = []
    handle_s: list[float] = []
    outputs = list(zip(model.signature.outputs, answer, strict=True))
    for message in messages:
        t0 = time.thread_time()
        whole = wire.infer_request(model.name, message, host=HOST)
        t1 = time.thread_time()
        plain.append(len(whole))
        if len(handle_s) < SIZED_ROWS:
            head, _, body = whole.partition(b"\r\n\r\n")
            length = int(head.partition(b"Inference-Header-Content-Length: ")[2].split(b"\r\n")[0])
            t2 = time.thread_time()
            wire.parse_request(body, length)
            wire.infer_response(model.name, str(model.version), outputs, server_timing=SERVER_TIMING)
            handle_s.append(time.thread_time() - t2)
        if pack:
            t3 = time.thread_time()
            small = wire.infer_request(model.name, message, host=HOST, compress=True)
            t4 = time.thread_time()
            wire.decompress(small.partition(b"\r\n\r\n")[2], "zstd")
            packed.append(len(small))
            pack_s.append(max(0.0, t4 - t3 - (t1 - t0)))
            unpack_s.append(time.thread_time() - t4)
    helps = bool(packed) and np.mean(packed) < 0.97 * np.mean(plain)
    return {
        "bytes_up": np.array(plain),
        "packed_up": np.array(packed if helps else []),
        "pack_s": float(np.median(pack_s)) if helps else 0.0,
        "unpack_s": float(np.median(unpack_s)) if helps else 0.0,
        "handle_s": float(np.median(handle_s)),
    }


def measured_score(
    model: Model, parent: Model, engine: Engine | OpenVino, samples: Samples | None, tail: Engine | None = None
) -> tuple[str, float | None, float | None, int]:
    """Metric, score, the parent's score, and the rows behind them. One row at a time, as it is served."""
    if samples is None:
        return "", None, None, 0
    held = samples.held()
    rows = [row[0] for row in inputs_of(model, samples)]
    if not rows:
        return "", None, None, 0
    ours = _answers(engine, rows, tail)
    theirs = ours if model.variant == parent.variant and tail is None else _answers(Engine(parent.path), rows)
    labelled = held.labels is not None
    wanted = theirs if held.labels is None else held.labels[: len(rows)]
    metric, score = answers.judge(ours, wanted, labelled)
    return metric, score, answers.judge(theirs, wanted, labelled)[1], len(rows)


def _answers(engine: Engine | OpenVino, rows: Sequence[Array], tail: Engine | None = None) -> Array:
    given = (engine.run([row]) for row in rows)
    if tail is not None:
        given = (tail.run(middle) for middle in given)
    return np.concatenate([answers.read(outputs[0][None]) for outputs in given])


def decode_s(samples: Samples | None) -> Array:
    if samples is None or not samples.encoded:
        return np.zeros(0)
    decode = PREPROCESS[_function(samples.media)][1]
    pictures = [np.array([data], dtype=object) for data in samples.encoded[:8]]
    return np.concatenate([timed(decode, [picture], APART_S)[:8] for picture in pictures])


def _function(media: str | None) -> str:
    """The pre-process Function that reads a media type."""
    name = str(media).removeprefix("image/")
    if name not in PREPROCESS:
        raise ModelError(f"no pre-process Function reads {media}; there is {', '.join(PREPROCESS)}.")
    return name
