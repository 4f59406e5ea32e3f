"""A site's process: loads the Functions of its endpoints and answers requests; the core, which speaks no protocol."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np

from airserve import catalog, wire
from airserve.contract import Deployment, Endpoint, SiteProcess, from_plain
from airserve.model import Array, ModelError, Run, Signature, Tensor, open_function
from airserve.serve.batching import Done, Padded, Workers
from airserve.serve.routing import Router
from airserve.timing import Timing

DEADLINE_S = 30.0  # where the request names none
INLINE_S = 1e-3  # work shorter than this runs on the loop when a core is free: a thread hop costs 30 us and more
DRAIN_S = 10.0
PR_SET_PDEATHSIG = 1


class UnknownEndpoint(LookupError):
    """No endpoint has this name; the message is one sentence."""


class BadInput(ValueError):
    """Inputs or requested outputs that do not fit the endpoint's signature; the message is one sentence."""


class EngineFailed(RuntimeError):
    """The engine refused inputs that fit the signature; the message is one sentence."""


class Reply(NamedTuple):
    """Outputs, where the time went here, and the next sites' Server-Timing as it came ("" without a route)."""

    outputs: list[tuple[Tensor, Array]]
    timings: tuple[Timing, ...]
    onward: str = ""


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
    """An endpoint, loaded and warmed up: its signature, the check of a request against it, and its work."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.router = Router(endpoint.next) if endpoint.next else None
        if not endpoint.functions:
            raise ModelError(f"endpoint {self.name} has no functions; give it at least one.")
        opened = [open_function(function) for function in endpoint.functions]
        for tensor in (t for signature, _ in opened for t in (*signature.inputs, *signature.outputs)):
            if tensor.dtype not in wire.DATATYPE:
                raise ModelError(f"endpoint {self.name}: {tensor.name} is {tensor.dtype}, which cannot be served.")
        runs = [opened[0][1]]
        for (before, _), (after, run) in itertools.pairwise(opened):
            runs.append(_joined(self.name, before.outputs, after.inputs, run))
        self.inputs, self.outputs = opened[0][0].inputs, opened[-1][0].outputs
        self.padded = Padded([(run, f.padded_s) for run, f in zip(runs, endpoint.functions, strict=True)])
        self.answered = self.failed = 0
        self.queue_s = self.compute_s = 0.0
        self._wanted = [(tensor, tensor.name, _dtype(tensor)) for tensor in self.inputs]
        warm_s = [_warm_up(self.name, signature, run) for signature, run in opened]
        self.cheap = self.padded.padded_s == 0 and sum(warm_s) < INLINE_S

    @property
    def counts(self) -> Counts:
        p = self.padded
        return Counts(self.answered, self.failed, self.queue_s, self.compute_s, p.overruns, p.worst_overrun_s)

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

    def check_requested(self, requested: Collection[str], outputs: Sequence[Tensor]) -> None:
        """Raises `BadInput` where a requested output does not exist."""
        names = [tensor.name for tensor in outputs]
        for name in requested:
            if name not in names:
                raise BadInput(f"{self.name} has no output {name!r}. It gives {', '.join(names)}.")

    def compute(self, ordered: Sequence[Array]) -> list[tuple[Tensor, Array]]:
        """Raises `ModelError` for data that cannot be decoded, `BadInput`, and `EngineFailed`."""
        try:
            return list(zip(self.outputs, self.padded(ordered), strict=True))
        except (ModelError, BadInput):
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineFailed(f"{self.name}: the engine refused the input: {reason[0][:200]}") from error

    def encode(self, ordered: Sequence[Array]) -> tuple[list[tuple[Tensor, Array]], bytes]:
        """`compute`, and for a head the request to its tail: encoding is work of this site too."""
        outputs = self.compute(ordered)
        return outputs, self.router.encode(outputs) if self.router else b""


@final
class Service:
    """The endpoints of one process and the cores they share. Made inside a running loop.

    Raises `ModelError` where a Function cannot be loaded.
    """

    def __init__(self, process: SiteProcess) -> None:
        self.site = process.site
        self.key = process.key
        self.endpoints = {endpoint.name: Served(endpoint) for endpoint in process.endpoints}
        self.workers = Workers(process.cores, name=process.key)

    def endpoint(self, name: str) -> Served:
        """Raises `UnknownEndpoint`."""
        try:
            return self.endpoints[name]
        except KeyError:
            known = ", ".join(self.endpoints) or "nothing"
            raise UnknownEndpoint(f"{self.key} has no model {name!r}; it answers to {known}.") from None

    def inline(
        self, name: str, inputs: Mapping[str, Array], *, requested: Collection[str] = (), arrived_s: float
    ) -> Reply | None:
        """The reply at once, on the loop, for a cheap endpoint without route or padding when a core is free; else None.

        Raises as `infer`.
        """
        served = self.endpoint(name)
        if not served.cheap or served.router is not None or not self.workers.idle:
            return None
        try:
            ordered = served.check(inputs)
            if requested:
                served.check_requested(requested, served.outputs)
            begun_s = time.monotonic()
            outputs = served.compute(ordered)
        except Exception:
            served.failed += 1
            raise
        return self._reply(served, Done(outputs, begun_s - arrived_s, time.monotonic() - begun_s), requested)

    async def infer(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        requested: Collection[str] = (),
        arrived_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Reply:
        """The outputs for inputs by name; `requested` names those wanted, none: all. Times are of `time.monotonic`.

        Raises `UnknownEndpoint`, `BadInput`, `ModelError`, `EngineFailed`, `Overloaded`, `DeadlineExceeded`,
        `UpstreamFailed`, `UpstreamLate`.
        """
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        deadline_s = arrived_s + DEADLINE_S if deadline_s is None else deadline_s
        served = self.endpoint(name)
        try:
            ordered = served.check(inputs)
            if requested and served.router is None:
                served.check_requested(requested, served.outputs)
            done = await self.workers.run(lambda: served.encode(ordered), arrived_s, deadline_s)
            outputs, request = done.result
            here = Done(outputs, done.queue_s, done.compute_s)
            if served.router is None:
                return self._reply(served, here, requested)
            onward = await served.router.ask(request, deadline_s)
            served.check_requested(requested, [tensor for tensor, _ in onward.outputs])
        except (Exception, asyncio.CancelledError):
            served.failed += 1
            raise
        reply = self._reply(served, here._replace(result=onward.outputs), requested)
        return reply._replace(timings=(*reply.timings, onward.air), onward=onward.server_timing)

    async def signature(self, name: str) -> Signature:
        """What an endpoint takes and gives; a head asks its tail what it gives.

        Raises `UnknownEndpoint`, `UpstreamFailed`, `UpstreamLate`.
        """
        served = self.endpoint(name)
        if served.router is None:
            return Signature(served.inputs, served.outputs)
        return Signature(served.inputs, await served.router.outputs(time.monotonic() + DEADLINE_S))

    def close(self) -> None:
        """Ends workers and connections, once nothing is awaited any more."""
        self.workers.close()
        for served in self.endpoints.values():
            if served.router is not None:
                served.router.close()

    def _reply(self, served: Served, done: Done[list[tuple[Tensor, Array]]], requested: Collection[str]) -> Reply:
        served.answered += 1
        served.queue_s += done.queue_s
        served.compute_s += done.compute_s
        outputs = [(t, array) for t, array in done.result if t.name in requested] if requested else done.result
        queue, compute = (
            Timing("queue", 1e3 * done.queue_s, self.site),
            Timing("compute", 1e3 * done.compute_s, self.site),
        )
        return Reply(outputs, (queue, compute))


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


def _warm_up(name: str, signature: Signature, run: Run) -> float:
    """Seconds of a warm run on zeros (the least of three); infinite where shapes do not allow it.

    Only a first axis may be free, for it counts samples; what other free axes may be, the graph does not say.
    """
    if any(t.dtype == "bytes" or -1 in t.shape[1:] for t in signature.inputs):
        return float("inf")
    zeros = [np.zeros([1 if axis < 0 else axis for axis in t.shape], t.dtype) for t in signature.inputs]
    taken_s = []
    for _ in range(4):  # the first run allocates
        begun_s = time.perf_counter()
        try:
            run(zeros)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"endpoint {name} fails on zeros of its own shape: {str(error)[:160]}") from None
        taken_s.append(time.perf_counter() - begun_s)
    return min(taken_s[1:])


def _dtype(tensor: Tensor) -> np.dtype[np.generic]:
    return np.dtype(object if tensor.dtype == "bytes" else tensor.dtype)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if shape[1:] == wanted[1:] and len(shape) == len(wanted):  # nearly always: only the first axis is free
        return shape == wanted or wanted[0] == -1
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def _shown(array: Array) -> str:
    return f"{'bytes' if array.dtype == object else array.dtype} {list(array.shape)}"


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.name!r} ({t.dtype} {list(t.shape)})" for t in tensors)


def read(path: Path, key: str) -> SiteProcess:
    """The process named `key` in a file that holds a Deployment as JSON.

    Raises `ModelError` where the file cannot be read or has no such process.
    """
    try:
        deployment = from_plain(Deployment, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a deployment ({str(error)[:100]}); `airserve up` writes one.") from None
    processes = {process.key: process for process in deployment.processes}
    if key not in processes:
        raise ModelError(f"{path} has no process {key!r}; it has {', '.join(processes) or 'none'}.")
    return processes[key]


async def serve(process: SiteProcess) -> None:
    """Answers until SIGTERM or SIGINT, then finishes what has begun. Raises `ModelError`, `OSError`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(process)
    listener = await catalog.protocols["oip"].listen(service, process.host, process.port)
    gc.collect()
    gc.freeze()  # models and modules stay: later collections need not walk them
    print(f"ready {process.key} http://{process.host}:{listener.port} {' '.join(service.endpoints)}", flush=True)
    await stop.wait()
    await listener.drain(DRAIN_S)
    service.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m airserve.serve.service DEPLOYMENT.json KEY`; 2 where it cannot start, with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m airserve.serve.service", description=__doc__)
    parser.add_argument("deployment", type=Path, help="a Deployment as JSON")
    parser.add_argument("key", help="the process in it: a site, or SITE-DEVICE")
    parser.add_argument("--die-with-parent", action="store_true", help="be killed when the parent dies (Linux)")
    given = parser.parse_args(arguments)
    if given.die_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        import uvloop

        process = read(given.deployment, given.key)
        uvloop.run(serve(process))
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{process.host}:{process.port}"
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        print(f"{given.key} cannot listen at {where} ({reason}); free it or choose another port.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # The module runs under two names here; the protocol knows the errors of this one.
    from airserve.serve.service import main as main_

    sys.exit(main_())
