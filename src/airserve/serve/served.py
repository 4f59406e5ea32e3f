"""A model as it is served: loaded, warmed up, a request checked against its signature before it is run."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from airserve.contract import Endpoint
from airserve.model import BFLOAT16, Array, ModelError, Run, Signature, Tensor, open_function, unserved
from airserve.serve.batching import DeadlineExceeded, Overloaded, Padded
from airserve.serve.configuration import Bounds
from airserve.serve.connecting import UpstreamLate
from airserve.serve.metering import CANCELLED, Meter, Table
from airserve.serve.routing import Router
from airserve.serve.warming import INLINE_S, batch_of, warm_up
from airserve.tensors import DATATYPE, NUMPY

if TYPE_CHECKING:
    from airserve.serve.encoding import Encoder
    from airserve.serve.generating import Generator


class BadInput(ValueError):
    """Inputs or requested outputs that do not fit the endpoint's signature; the message is one sentence."""


class EngineFailed(RuntimeError):
    """The engine refused inputs that fit the signature; the message is one sentence."""


COSTLY_S = 5e-3  # work longer than this may be handed to an idle worker

FAILURE: dict[type[BaseException], str] = {
    BadInput: "refused", ModelError: "refused", Overloaded: "rejected", DeadlineExceeded: "late", UpstreamLate: "late",
    asyncio.CancelledError: CANCELLED,
}  # fmt: skip


def failure(error: BaseException) -> str:
    """As what a request that ended with this error is counted."""
    return next((FAILURE[kind] for kind in type(error).__mro__ if kind in FAILURE), "failed")


class Counts(NamedTuple):
    """What an endpoint has done since the start."""

    answered: int
    failed: int
    queue_s: float
    compute_s: float
    overruns: int
    worst_overrun_s: float


@final
class Served:
    """A version of a model, loaded and warmed up: its signature, the check of a request against it, and its work.

    `worker` and `slot` say where in `table` it is counted, `bounds` what a language model may hold. Raises `ModelError`
    where it cannot be loaded.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        table: Table | None = None,
        worker: int = 0,
        slot: int = 0,
        bounds: Bounds | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self.forms: dict[bytes, Any] = {}  # for a protocol: what it has worked out of requests to this version
        self.version = endpoint.version
        self.router = Router((endpoint.next, *endpoint.also)) if endpoint.next else None
        if not endpoint.functions:
            raise ModelError(f"endpoint {self.name} has no functions; give it at least one.")
        opened = [_no_tensors(f.path) or open_function(f) for f in endpoint.functions]
        for tensor in (t for signature, _ in opened for t in (*signature.inputs, *signature.outputs)):
            if tensor.dtype not in DATATYPE:
                raise ModelError(f"endpoint {self.name}: {unserved(tensor)}.")
        runs = [opened[0][1]]
        for (before, _), (after, run) in itertools.pairwise(opened):
            runs.append(_joined(self.name, before.outputs, after.inputs, run))
        self.inputs, self.outputs = opened[0][0].inputs, opened[-1][0].outputs
        self.padded = Padded([(run, f.padded_s) for run, f in zip(runs, endpoint.functions, strict=True)])
        self.table, self.slot = table or Table(slots=1), slot
        self.meter: Meter = self.table.meter(worker, slot)
        self.aside: Meter = self.table.meter(worker, slot, aside=True)
        self._wanted = [(tensor, tensor.name, _dtype(tensor)) for tensor in self.inputs]
        warm_s = [warm_up(self.name, signature, run) for signature, run in opened]
        self.cheap = self.padded.padded_s == 0 and sum(warm_s) < INLINE_S
        self.quick = self.cheap and self.router is None  # may be computed on the loop
        self.work: Run = runs[0] if self.padded.plain else self.padded
        self.lasts_s = sum(warm_s) if np.isfinite(sum(warm_s)) else 0.0  # a run, as last seen
        self.mark = ""  # what names this version, of this file, to other workers; "" where there are none
        tensors = (*self.inputs, *self.outputs)
        self._movable = (
            self.router is None and self.padded.padded_s == 0 and all(tensor.dtype != "bytes" for tensor in tensors)
        )
        self.apart, self._found = batch_of(self.inputs, self.outputs, self.work) if self.quick else (False, 1)
        self._batching = self.table.batching(slot)
        self.language: Generator | Encoder | None = None
        speaks = not self.inputs or any(tensor.name == "input_ids" for tensor in self.inputs)
        if len(opened) == 1 and speaks:
            from airserve.serve.language import open_language  # of no use to others

            path, tally = Path(endpoint.functions[0].path), self.table.tallies.tally(worker, slot)
            self.language = open_language(self.name, path, runs[0], self.meter, tally, bounds or Bounds())

    @property
    def max_batch(self) -> int:
        """Rows that are computed together at most: as set, else as the first runs say."""
        return int(self._batching[0]) or self._found

    @property
    def max_wait_s(self) -> float:
        """That a request waits for others."""
        return self._batching[1]

    def batch(self, max_batch: int, max_wait_s: float) -> None:
        """Set both, in all workers, from the next request on; 0 rows: as the first runs say. Raises `BadInput`."""
        if not self.apart and (max_batch > 1 or max_wait_s):
            why = "a row's answer may depend on the others" if self.quick else "it takes 1 ms or more for one"
            raise BadInput(f"requests to {self.name} are not computed together: {why}.")
        self._batching[0], self._batching[1] = max_batch, max_wait_s

    @property
    def portable(self) -> bool:
        """Whether another worker may compute a request: it has the same version, and the hand-over is worth it."""
        return bool(self.mark) and self.lasts_s > COSTLY_S and self._movable

    @property
    def counts(self) -> Counts:
        p, counted = self.padded, self.table.counted(self.slot)
        return Counts(
            counted.answered, counted.failed, counted.queue_s, counted.compute_s, p.overruns, p.worst_overrun_s
        )

    @property
    def platform(self) -> str:
        """What computes, by the names that Triton has for it."""
        engine = self.endpoint.functions[-1].runtime.engine
        return "onnxruntime_onnx" if engine == "onnxruntime" else engine

    def check(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the signature's order. Raises `BadInput`: which, what was expected, what came."""
        ordered = []
        for tensor, name, dtype in self._wanted:
            array = inputs.get(name)
            if array is None:
                unknown = [name for name in inputs if name not in {t.name for t in self.inputs}]
                came = f"; it has no input {unknown[0]!r}" if unknown else ""
                raise BadInput(f"{self.name} lacks input {tensor.name!r}{came}. It takes {_listed(self.inputs)}.")
            if array.dtype != dtype or not _fits(array.shape, tensor.shape):
                raise BadInput(
                    f"input {tensor.name!r} of {self.name} is {_shown(array)}; expected {tensor.dtype} "
                    f"{list(tensor.shape)}."
                )
            ordered.append(array)
        if len(inputs) > len(ordered):
            unknown = [name for name in inputs if name not in {t.name for t in self.inputs}]
            raise BadInput(f"{self.name} has no input {unknown[0]!r}. It takes {_listed(self.inputs)}.")
        return ordered

    def checked(self, inputs: Mapping[str, Array], requested: Collection[str] = (), aside: bool = False) -> list[Array]:
        """As `check`, with the outputs that are wanted, where they are known here; counts what is refused."""
        try:
            ordered = self.check(inputs)
            if requested and self.router is None:
                self.check_requested(requested, self.outputs)
        except BadInput:
            (self.aside if aside else self.meter).failed("refused")
            raise
        return ordered

    def check_requested(self, requested: Collection[str], outputs: Sequence[Tensor]) -> None:
        """Raises `BadInput` where a requested output does not exist."""
        names = [tensor.name for tensor in outputs]
        for name in requested:
            if name not in names:
                raise BadInput(f"{self.name} has no output {name!r}. It gives {', '.join(names)}.")

    def run(self, ordered: Sequence[Array]) -> list[Array]:
        """The outputs in the signature's order, for checked inputs.

        Raises `ModelError` for data that cannot be decoded, `BadInput`, and `EngineFailed`.
        """
        try:
            return self.work(ordered)
        except Exception as error:
            raise self.explained(error) from None

    def explained(self, error: Exception) -> Exception:
        """What `work` raised, as one of the errors that `run` raises: onnxruntime's share no base class."""
        if isinstance(error, (ModelError, BadInput)):
            return error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return EngineFailed(f"{self.name}: the engine refused the input: {reason[0][:200]}")

    def close(self) -> None:
        self.forms.clear()  # they hold this version, and with it the engine's memory
        if self.router is not None:
            self.router.close()
        if self.language is not None:
            self.language.close()


def _no_tensors(path: str) -> tuple[Signature, Run] | None:
    """A GGUF file as a Function: it takes and gives none. None for another file."""

    def refuse(_: Sequence[Array]) -> list[Array]:
        raise BadInput(f"{Path(path).stem} takes and gives no tensors; ask it for text (/v1/chat/completions).")

    return (Signature((), ()), refuse) if path.endswith(".gguf") else None


def _joined(name: str, before: Sequence[Tensor], after: Sequence[Tensor], run: Run) -> Run:
    """A Function behind another: it takes the other's outputs in order. Raises `ModelError` where they cannot fit."""
    same = len(before) == len(after) and all(
        b.dtype == a.dtype and len(b.shape) == len(a.shape) for b, a in zip(before, after, strict=True)
    )
    if not same:
        raise ModelError(f"endpoint {name}: a function gives {_listed(before)}, the next takes {_listed(after)}.")

    def checked(arrays: Sequence[Array]) -> list[Array]:
        for array, tensor in zip(arrays, after, strict=True):
            if not _fits(array.shape, tensor.shape):
                raise BadInput(
                    f"the input of {name} becomes {_shown(array)}; the model takes {tensor.dtype} {list(tensor.shape)}."
                )
        return run(arrays)

    return checked


def _dtype(tensor: Tensor) -> np.dtype[np.generic]:
    return NUMPY[DATATYPE[tensor.dtype]]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if shape[1:] == wanted[1:] and len(shape) == len(wanted):  # nearly always: only the first axis is free
        return shape == wanted or wanted[0] == -1
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def _shown(array: Array) -> str:
    names = {np.dtype(object): "bytes", BFLOAT16: "bfloat16"}
    return f"{names.get(array.dtype, array.dtype)} {list(array.shape)}"


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.name!r} ({t.dtype} {list(t.shape)})" for t in tensors)
