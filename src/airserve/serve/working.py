"""One worker of a service: answers at the shared address, and follows the supervisor in what is served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, final

from airserve import catalog
from airserve.contract import SiteProcess, from_plain
from airserve.errors import UserError
from airserve.linux import give_back, map_large_blocks
from airserve.model import ModelError, shrink_memory
from airserve.serve import offering, recording, tracing
from airserve.serve.configuration import Configuration, ConfigurationError
from airserve.serve.guarding import Guard
from airserve.serve.handing import Hands, Siblings
from airserve.serve.metering import Table
from airserve.serve.offering import Offer
from airserve.serve.protocols import _http
from airserve.serve.served import Served
from airserve.serve.service import Service

DRAIN_S = 10.0
LINE_LIMIT_BYTES = 1 << 24  # of a message from the supervisor: some 300 bytes and two paths for each version
FREED_S = 0.5  # after versions were replaced, until their memory goes back to the system

log = logging.getLogger(__name__)

Wrap = Callable[[_http.Answer, _http.Failed], _http.Answer]


class Shared(NamedTuple):
    """What the workers of a service have in common, made before they are forked."""

    table: Table
    guard: Guard | None
    siblings: Siblings


def preload(configuration: Configuration) -> None:
    """Load what every worker needs before it is forked: they share its pages, and one that is started again has it.

    None of it starts a thread before it is used; a fork has none but its own.
    """
    import onnxruntime  # noqa: F401
    import uvloop  # noqa: F401

    assert catalog.protocols["oip"]
    if configuration.grpc_port >= 0:
        with contextlib.suppress(ImportError):  # which a worker says in a sentence
            assert catalog.protocols["oip-grpc"]


def run(
    configuration: Configuration,
    shared: Shared,
    number: int,
    offers: Sequence[Offer],
    held: Sequence[str],
    line: socket.socket,
) -> int:
    """Serves until SIGTERM; the exit status. `line` leads to the supervisor, `held` to the files that it holds open."""
    import uvloop

    map_large_blocks()

    async def serve() -> None:
        reader, writer = await asyncio.open_connection(sock=line, limit=LINE_LIMIT_BYTES)
        try:
            await _serve(configuration, shared, number, offers, held, (reader, writer))
        finally:  # with warnings as errors uvloop does not end while it is open
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    with line.dup() as spare:  # the loop closes its own
        try:
            uvloop.run(serve())
        except (UserError, OSError) as error:
            spare.setblocking(True)
            spare.sendall(json.dumps({"say": "failed", "error": str(error)}).encode() + b"\n")
            return 2
    return 0


async def _serve(
    configuration: Configuration,
    shared: Shared,
    number: int,
    offers: Sequence[Offer],
    held: Sequence[str],
    line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    c, guard = configuration, shared.guard
    service = Service(SiteProcess(c.name, c.host, c.port, 1, ()), shared.table, number)
    models = Models(service, configuration, line)
    service.models, service.guard = models, guard
    models.prepare(offers, held)
    models.turn()
    models.say(say="loaded")
    stopped, following = asyncio.create_task(stop.wait()), asyncio.create_task(models.follow(until="listen"))
    await asyncio.wait((stopped, following), return_when=asyncio.FIRST_COMPLETED)  # what was changed meanwhile
    if stop.is_set() or not following.done():
        following.cancel()
        service.close()
        return
    following.result()
    service.deadline_s, service.workers.limit = c.deadline_s, c.queue
    service.knowledge = c.knowledge
    recording.record(c.access_log)
    spans = tracing.Spans(c.name) if c.otel else None
    wrap = _wraps(*([spans.traced] if spans else []), *([recording.recorded] if c.access_log else []))
    listener = await catalog.protocols["oip"].listen(
        service, c.host, c.port, share=True, tls=_tls(c), guard=guard, wrap=wrap
    )
    listeners = [listener]
    if c.grpc_port >= 0:
        listeners.append(await _grpc(service, c, guard, spans.called if spans else None))
    hands = Hands(shared.siblings, number, service)
    await hands.open()
    gc.collect()
    gc.freeze()  # models and modules stay: later collections need not walk them
    models.say(say="ready")
    following = asyncio.create_task(models.follow())
    await stopped
    hands.leave()
    await asyncio.gather(*(one.drain(DRAIN_S) for one in listeners))
    hands.close()
    following.cancel()
    service.close()
    if spans is not None:
        await asyncio.to_thread(spans.flush)


def _wraps(*wraps: Wrap) -> Wrap | None:
    """What stands between requests and answers, the first inmost; None where nothing does."""

    def whole(answer: _http.Answer, failed: _http.Failed) -> _http.Answer:
        for wrap in wraps:
            answer = wrap(answer, failed)
        return answer

    return whole if wraps else None


async def _grpc(service: Service, configuration: Configuration, guard: Guard | None, told: Any) -> Any:
    try:
        protocol = catalog.protocols["oip-grpc"]
    except ImportError:
        raise ConfigurationError("gRPC needs the extra `grpc`: pip install 'airserve[grpc]'.") from None
    c, certificate = configuration, None
    if c.tls_cert:
        certificate = (Path(c.tls_key).read_bytes(), Path(c.tls_cert).read_bytes())
    how = {"share": True, "certificate": certificate, "guard": guard, "told": told}
    return await protocol.listen(service, c.host, c.grpc_port, **how)


def _tls(configuration: Configuration) -> ssl.SSLContext | None:
    if not configuration.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(configuration.tls_cert, configuration.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{configuration.tls_cert} and {configuration.tls_key} are no certificate and its key ({error})."
        ) from None
    return context


@final
class Models:
    """What this worker serves and what its service could: changes are asked of the supervisor, which leads all."""

    def __init__(
        self,
        service: Service,
        configuration: Configuration,
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._service = service
        self._configuration = configuration
        self._reader, self._writer = line
        self._have: dict[Offer, Served] = {}
        self._next: dict[Offer, Served] = {}
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[str | None]] = {}

    async def load(self, model: str) -> None:
        """Read a model anew from where it comes; the old version answers until all workers have the new one.

        Raises `ModelError`.
        """
        await self._ask("load", model)

    async def unload(self, model: str) -> None:
        """Serve a model no more; what is under way is answered. Raises `UnknownEndpoint`."""
        self._service.endpoint(model)
        await self._ask("unload", model)

    def index(self) -> list[tuple[str, str, str, str]]:
        """Name, version, state and reason of all that is served or could be loaded."""
        rows = [(served.name, served.version, "READY", "") for served in self._service.served]
        here = {name for name, *_ in rows}
        try:
            there = [name for source in self._configuration.sources for name in offering.names(source)]
        except ModelError:
            there = []
        return rows + [(name, "", "UNAVAILABLE", "unloaded") for name in there if name not in here]

    def say(self, **message: Any) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    def prepare(self, offers: Sequence[Offer], held: Sequence[str]) -> None:
        """Load what is not there yet, from its file or, where that was replaced, as it is `held`.

        Raises `ModelError`.
        """
        self.drop()
        try:
            for offer, place in zip(offers, held, strict=True):
                self._next[offer] = self._have.get(offer) or self._load(offer, place)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Give up what was prepared."""
        self._next, dropped = {}, self._next
        for offer, served in dropped.items():
            if offer not in self._have:
                served.close()

    def _load(self, offer: Offer, held: str) -> Served:
        """Raises `ModelError`."""
        failed: ModelError | None = None
        first, *others = offer.endpoint.functions
        for path in filter(None, (first.path, held)):
            try:
                if offering.stamp(path) != offer.stamp:
                    continue
                endpoint = replace(offer.endpoint, functions=(replace(first, path=path), *others))
                service, bounds = self._service, self._configuration.bounds
                served = Served(endpoint, service.table, service.worker, offer.slot, bounds)
                if offering.stamp(path) == offer.stamp:
                    served.mark = offering.mark(offer)
                    return served
                served.close()
            except ModelError as error:
                if path == first.path:
                    failed = error
        raise failed or ModelError(f"{offer.endpoint.name} was written while it was loaded; load it again.")

    def turn(self) -> None:
        """Answer from now on with what was prepared."""
        self._have, self._next = self._next, {}
        gone = self._service.offer(self._have.values())
        for old in gone:
            old.close()
        if gone:  # once their last requests are answered
            loop = asyncio.get_running_loop()
            loop.call_later(FREED_S, loop.run_in_executor, None, _give_back)

    async def follow(self, until: str = "") -> None:
        """Does what the supervisor says, until its line ends, or `until` is said.

        Raises `ModelError` where it cannot follow before it listens.
        """
        while line := await self._reader.readline():
            message = json.loads(line)
            if message["do"] == until:
                return
            match message["do"]:
                case "prepare" | "follow":
                    offers = [from_plain(Offer, plain) for plain in message["offers"]]
                    error = ""
                    try:
                        await asyncio.to_thread(self.prepare, offers, message["held"])
                    except UserError as failed:
                        error = str(failed)
                    except Exception as failed:  # else this worker would follow no more, and nobody know
                        log.error("models could not be loaded, in a way that no error names", exc_info=failed)
                        error = f"a worker failed to load it ({type(failed).__name__}); its log says where."
                    if message["do"] == "prepare":
                        self.say(say="done", change=message["change"], step="prepare", error=error)
                    elif error:
                        raise ModelError(error)
                    else:
                        self.turn()
                        self.say(say="loaded")
                case "turn":
                    self.turn()
                    self.say(say="done", change=message["change"], step="turn", error="")
                case "drop":
                    self.drop()
                case "answer":
                    waiting = self._waiting.pop(message["id"], None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message["error"])

    async def _ask(self, what: str, model: str) -> None:
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.say(say="ask", id=number, what=what, model=model)
        if error := await future:
            raise ModelError(error)


def _give_back() -> None:
    """What neither a version nor a request needs any more, to the system: the first runs of a version take most."""
    shrink_memory()
    give_back()
