"""A site's process: loads the Functions of its endpoints and answers requests; the core, which speaks no protocol."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, final

from airserve import catalog
from airserve.contract import Deployment, SiteProcess, from_plain
from airserve.linux import die_with_parent
from airserve.model import Array, ModelError, Signature, Tensor
from airserve.serve.batching import Done, Job, Overloaded, Parcel, Workers
from airserve.serve.gathering import Gatherer
from airserve.serve.guarding import Guard
from airserve.serve.metering import CANCELLED, Table
from airserve.serve.served import Served, failure
from airserve.timing import Timing

DEADLINE_S = 30.0  # where the request names none
DRAIN_S = 10.0


class UnknownEndpoint(LookupError):
    """No endpoint has this name or version; the message is one sentence."""


class Fixed(RuntimeError):
    """What is served cannot be changed from outside; the message is one sentence."""


class Models(Protocol):
    """What a service could serve, where that can be changed while it runs."""

    async def load(self, model: str) -> None: ...

    async def unload(self, model: str) -> None: ...

    def index(self) -> list[tuple[str, str, str, str]]: ...


class Reply(NamedTuple):
    """Outputs, where the time went here, and the next sites' Server-Timing as it came ("" without a route)."""

    outputs: list[tuple[Tensor, Array]]
    timings: tuple[Timing, ...]
    onward: str = ""


@final
class Service:
    """The endpoints of one process and the cores they share. Made inside a running loop.

    Raises `ModelError` where a Function cannot be loaded.
    """

    def __init__(self, process: SiteProcess, table: Table | None = None, worker: int = 0) -> None:
        self.site = process.site
        self.key = process.key
        self.table = table or Table(slots=max(1, len(process.endpoints)))
        self.worker = worker
        self.deadline_s = DEADLINE_S
        self.knowledge = ""  # a folder for knowledge bases and assistants, where some are kept
        self.models: Models | None = None  # None: as its deployment says
        self.guard: Guard | None = None  # who may ask, and what each has asked; None: anybody
        self.generation = 0  # of what is offered: what was worked out for another holds no longer
        self._offered: dict[str, dict[str, Served]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._gatherers: dict[Served, Gatherer] = {}
        self.workers = Workers(process.cores, name=process.key)
        loaded = [Served(e, self.table, worker, slot) for slot, e in enumerate(process.endpoints)]
        self.offer(loaded)

    @property
    def served(self) -> list[Served]:
        """Every version of every model."""
        return [served for versions in self._offered.values() for served in versions.values()]

    def offer(self, served: Iterable[Served]) -> list[Served]:
        """Answer with these and nothing else from the next request on; requests under way end where they began.

        Returns those that are offered no more.
        """
        offered: dict[str, dict[str, Served]] = {}
        for one in served:
            offered.setdefault(one.name, {})[one.version] = one
        before = self.served
        for versions in offered.values():
            for version in sorted(versions, key=_age):
                versions[version] = versions.pop(version)
        self._offered = offered
        known = self._gatherers
        self._gatherers = {one: known.get(one) or Gatherer(one) for one in self.served if one.apart}
        self._aliases = {
            name: {alias: version for version, one in versions.items() for alias in one.endpoint.aliases}
            for name, versions in offered.items()
        }
        self.generation += 1
        return [one for one in before if one not in set(self.served)]

    def endpoint(self, name: str, version: str = "") -> Served:
        """The version of a model, its latest where none is named. Raises `UnknownEndpoint`."""
        versions = self._offered.get(name)
        if versions is None:
            known = f"it answers to {', '.join(self._offered) or 'nothing'}"
            others = known if self.guard is None else "ask for one that your key opens"  # others' names are theirs
            raise UnknownEndpoint(f"{self.key} has no model {name[:80]!r}; {others}.")
        if not version:
            return next(reversed(versions.values()))
        aliases = self._aliases[name]
        found = versions.get(aliases.get(version, version))
        if found is None:
            raise UnknownEndpoint(f"{name} has no version {version[:20]!r}; it has {', '.join([*versions, *aliases])}.")
        return found

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the latest last. Raises `UnknownEndpoint`."""
        self.endpoint(name)
        return list(self._offered[name])

    def index(self) -> list[tuple[str, str, str, str]]:
        """Name, version, state and reason of all that is served or could be."""
        if self.models is not None:
            return self.models.index()
        return [(served.name, served.version, "READY", "") for served in self.served]

    async def change(self, what: Literal["load", "unload"], model: str) -> None:
        """Load or unload a model, in all workers, without a request being lost.

        Raises `Fixed`, `UnknownEndpoint`, `ModelError`.
        """
        if self.models is None:
            raise Fixed(f"the models of {self.key} are those of its deployment; change them with `airserve up`.")
        await (self.models.load if what == "load" else self.models.unload)(model)

    def gatherer(self, served: Served) -> Gatherer | None:
        """What computes requests that come together, for a model whose rows stand apart."""
        return self._gatherers.get(served)

    def inline(
        self, served: Served, inputs: Mapping[str, Array], *, requested: Collection[str] = (), arrived_s: float
    ) -> Reply | None:
        """The reply at once, on the loop, for a cheap endpoint without route or padding when a core is free; else None.

        Raises as `infer`.
        """
        if not (served.quick and self.workers.idle):
            return None
        done = Done(*self.compute(served, served.checked(inputs, requested), arrived_s))
        return self._replied(list(zip(served.outputs, done.result, strict=True)), done, requested)

    def compute(
        self, served: Served, ordered: Sequence[Array], arrived_s: float, aside: bool = False
    ) -> tuple[list[Array], float, float]:
        """Outputs for checked inputs, here and now, with the seconds since arrival and those of the work; counted.

        `aside`: on another thread than the loop's, one at a time.

        Raises `ModelError`, `BadInput`, `EngineFailed`.
        """
        begun_s = time.monotonic()
        try:
            outputs = served.work(ordered)
        except Exception as error:
            explained = served.explained(error)
            (served.aside if aside else served.meter).failed(failure(explained))
            raise explained from None
        compute_s = time.monotonic() - begun_s
        queue_s = begun_s - arrived_s
        (served.aside if aside else served.meter).answered(queue_s, compute_s, _rows(ordered))
        return outputs, queue_s, compute_s

    async def infer(
        self,
        name: str | Served,
        inputs: Mapping[str, Array],
        *,
        requested: Collection[str] = (),
        arrived_s: float | None = None,
        deadline_s: float | None = None,
        trace: str = "",
    ) -> Reply:
        """The outputs for inputs by name; `requested` names those wanted, none: all. Times are of `time.monotonic`.

        `trace` is a header line that goes on to the next site.

        Raises `UnknownEndpoint`, `BadInput`, `ModelError`, `EngineFailed`, `Overloaded`, `DeadlineExceeded`,
        `UpstreamFailed`, `UpstreamLate`.
        """
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        named = deadline_s is not None
        deadline_s = arrived_s + self.deadline_s if deadline_s is None else deadline_s
        served = name if isinstance(name, Served) else self.endpoint(name)
        ordered = served.checked(inputs, requested)
        if (router := served.router) is None:
            done = await self._done(served, ordered, arrived_s, deadline_s)
            return self._replied(list(zip(served.outputs, done.result, strict=True)), done, requested)

        def work() -> bytes:  # of a head; encoding is work of this site too
            return router.encode(list(zip(served.outputs, served.run(ordered), strict=True)), trace)

        try:
            sent = await self.workers.run(work, arrived_s, deadline_s)
            served.lasts_s = sent.compute_s
            onward = await router.ask(sent.result, deadline_s, tell=named)
            served.check_requested(requested, [tensor for tensor, _ in onward.outputs])
        except (Exception, asyncio.CancelledError) as error:
            served.meter.failed(failure(error))
            raise
        served.meter.answered(sent.queue_s, sent.compute_s, _rows(ordered))
        reply = self._replied(onward.outputs, sent, requested)
        return reply._replace(timings=(*reply.timings, onward.air), onward=onward.server_timing)

    async def _done(
        self, served: Served, ordered: Sequence[Array], arrived_s: float, deadline_s: float
    ) -> Done[list[Array]]:
        """As `begin`, awaited."""
        future: asyncio.Future[Done[list[Array]]] = asyncio.get_running_loop().create_future()

        def told(outcome: Done[list[Array]] | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        give_up = self.begin(served, ordered, arrived_s, deadline_s, told)
        try:
            return await future
        except asyncio.CancelledError:
            give_up()
            raise

    def begin(
        self,
        served: Served,
        ordered: Sequence[Array],
        arrived_s: float,
        deadline_s: float,
        told: Callable[[Done[list[Array]] | Exception], None],
    ) -> Callable[[], None]:
        """Computes checked inputs of a model without route when a core is free; in the loop it tells what came of it.

        What it returns is to be called where nobody waits any more; then nothing is told. Counted.

        Raises `Overloaded`.
        """

        def ended(job: Job) -> None:
            try:
                done = job.done(arrived_s)
            except Exception as error:
                served.meter.failed(failure(error))
                told(error)
                return
            served.lasts_s = done.compute_s
            served.meter.answered(done.queue_s, done.compute_s, _rows(ordered))
            told(done)

        def give_up() -> None:
            if not job.over:
                self.workers.drop(job)
                served.meter.failed(CANCELLED)

        try:
            parcel = Parcel(served, ordered) if served.portable else None
            job = self.workers.put(lambda: served.run(ordered), deadline_s, ended, parcel)
        except Overloaded as error:
            served.meter.failed(failure(error))
            raise
        return give_up

    async def signature(self, served: Served) -> Signature:
        """What an endpoint takes and gives; a head asks its tail what it gives.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        if served.router is None:
            return Signature(served.inputs, served.outputs)
        return Signature(served.inputs, await served.router.outputs(time.monotonic() + DEADLINE_S))

    def close(self) -> None:
        """Ends workers and connections, once nothing is awaited any more."""
        self.workers.close()
        for served in self.served:
            served.close()

    def _replied(self, outputs: list[tuple[Tensor, Array]], done: Done[Any], requested: Collection[str]) -> Reply:
        wanted = [(t, array) for t, array in outputs if t.name in requested] if requested else outputs
        queue = Timing("queue", 1e3 * done.queue_s, self.site)
        return Reply(wanted, (queue, Timing("compute", 1e3 * done.compute_s, self.site)))


def _age(version: str) -> tuple[bool, int, str]:
    """Versions in order: words before numbers, numbers by size."""
    return (version.isdecimal(), int(version) if version.isdecimal() else 0, version)


def _rows(ordered: Sequence[Array]) -> int:
    """Samples of a request: the first axis counts them."""
    shape = ordered[0].shape if ordered else ()
    return shape[0] if shape else 1


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
    names = " ".join(dict.fromkeys(served.name for served in service.served))
    print(f"ready {process.key} http://{process.host}:{listener.port} {names}", flush=True)
    await stop.wait()
    await listener.drain(DRAIN_S)
    service.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m airserve.serve.service DEPLOYMENT.json KEY`; 2 where it cannot start, with one sentence."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m airserve.serve.service", description=__doc__)
    parser.add_argument("deployment", type=Path, help="a Deployment as JSON")
    parser.add_argument("key", help="the process in it: a site, or SITE-DEVICE")
    parser.add_argument("--die-with-parent", action="store_true", help="be killed when the parent dies (Linux)")
    given = parser.parse_args(arguments)
    if given.die_with_parent and sys.platform == "linux":
        die_with_parent(os.getppid())
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
