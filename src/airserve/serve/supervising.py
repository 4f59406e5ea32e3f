"""A service of its own: a supervisor and its workers, one process a core, at one address.

The supervisor opens no model and answers nobody: it forks workers, which share a port (SO_REUSEPORT) and a table of
what was counted; starts a worker again when it dies; and leads them through changes of what is served in two steps, so
that a request to any worker sees one truth: all make the new version ready while the old one answers, then all turn to
it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from airserve.contract import to_plain
from airserve.errors import UserError
from airserve.model import ModelError
from airserve.serve import offering, working
from airserve.serve.configuration import Configuration, ConfigurationError, read
from airserve.serve.following import Follower
from airserve.serve.forking import STOP, Worker
from airserve.serve.guarding import Guard
from airserve.serve.handing import Siblings
from airserve.serve.holding import Holder
from airserve.serve.inquiring import Inquiry
from airserve.serve.lineup import Lineup
from airserve.serve.metering import Table
from airserve.serve.offering import Offer

DRAIN_S = 12.0  # a worker's own is shorter
PREPARE_S = 300.0  # for all workers to load a model
NOBODY = -1  # in place of the worker that asks for a change
START_AGAIN_S = 1.0  # after the system could not start one
CALM_S = 5.0  # a worker that lived so long is started again at once, another a little later each time

log = logging.getLogger(__name__)

Asker = tuple[int, int]  # the worker that asks for a change, and its number for that


@final
class _Change:
    """What shall be served instead, who asked for it, and which workers have yet to follow."""

    def __init__(self, number: int, offers: list[Offer], asker: Asker, waits_for: set[int]) -> None:
        self.number = number  # a worker repeats it when it has followed, perhaps too late
        self.offers, self.asker, self.waits_for = offers, asker, waits_for
        self.step = "prepare"
        self.until_s = time.monotonic() + PREPARE_S


@final
class Supervisor:
    """Starts and keeps the workers of a Configuration. Raises `UserError` where it cannot start."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.check()
        self._table, self._siblings = Table(configuration.workers), Siblings(configuration.workers)
        self._follower = Follower(configuration.sources, configuration.cores)  # from before they are read
        self._lineup = Lineup(configuration, self._table)
        self._holder = Holder()
        self._holder.hold(self._lineup.offers)
        self._held, port = reserve(configuration.host, configuration.port)
        self._configuration = replace(configuration, port=port)
        self._held_grpc = None
        if configuration.grpc_port >= 0:
            self._held_grpc, grpc_port = reserve(configuration.host, configuration.grpc_port)
            self._configuration = replace(self._configuration, grpc_port=grpc_port)
        self._guard = Guard(configuration) if configuration.keys or configuration.jwks else None
        self._generation = 0
        self._workers: dict[int, Worker] = {}
        self._again_s: dict[int, float] = {}  # when a worker that died is to be started
        self._deaths: dict[int, int] = {}
        self._change: _Change | None = None
        self._changes = itertools.count()
        self._asked: deque[tuple[int, int, str, str | Offer]] = deque()
        self._inquiry: tuple[Asker, str, Inquiry] | None = None  # of a load: who asks, and for which model
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises `UserError` where a worker cannot start at the beginning."""
        for handled in STOP:
            signal.signal(handled, lambda *_: setattr(self, "_stopping", True))
        working.preload(self._configuration)
        gc.collect()
        gc.freeze()  # so that workers share the pages of what is there
        for number in range(self._configuration.workers):
            self._start(number)
        try:
            self._until_ready()
            names = " ".join(dict.fromkeys(offer.endpoint.name for offer in self._lineup.offers))
            c = self._configuration
            scheme = "https" if c.tls_cert else "http"
            also = f" grpc://{c.host}:{c.grpc_port}" if c.grpc_port >= 0 else ""
            print(f"ready {c.name} {scheme}://{c.host}:{c.port}{also} {names}", flush=True)
            while not self._stopping:
                self._turn(0.2)
        finally:
            self._end()

    def _start(self, number: int) -> None:
        """Raises `OSError` where the system has no process for it."""
        held = self._holder.held(self._lineup.offers)

        def work(line: socket.socket) -> int:
            shared = working.Shared(self._table, self._guard, self._siblings)
            return working.run(self._configuration, shared, number, self._lineup.offers, held, line)

        self._workers[number] = Worker(number, self._generation, work, self._workers.values())

    def _until_ready(self) -> None:
        while not self._stopping and not all(worker.ready for worker in self._workers.values()):
            self._turn(0.2, beginning=True)

    def _turn(self, wait_s: float, beginning: bool = False) -> None:
        """Hears what workers say for at most `wait_s`, starts those that are due, and goes on with a change."""
        by_line = {worker.line.fileno(): worker for worker in self._workers.values()}
        also = [] if self._inquiry is None else [self._inquiry[2].ended]
        with contextlib.suppress(InterruptedError):
            for line in select.select([*by_line, *also], [], [], wait_s)[0]:
                if (worker := by_line.get(line)) is None:
                    continue
                messages = worker.heard()
                if messages is None:
                    self._bury(worker, beginning)
                for message in messages or ():
                    if message["say"] == "failed" and beginning:
                        raise ModelError(message["error"])
                    self._hear(worker, message)
        if self._stopping:
            return
        now_s = time.monotonic()
        if self._guard is not None:
            self._guard.follow()
        for number in [number for number, at_s in self._again_s.items() if at_s <= now_s]:
            del self._again_s[number]
            try:
                self._start(number)
            except OSError as error:  # no memory or no process to be had, just now
                print(f"worker {number} cannot be started yet ({error.strerror}).", file=sys.stderr, flush=True)
                self._again_s[number] = now_s + START_AGAIN_S
        for offer in self._follower.look(now_s, self._lineup.offers):
            self._asked.append((NOBODY, 0, "follow", offer))
        self._advance(now_s)

    def _bury(self, worker: Worker, beginning: bool) -> None:
        how = worker.ended()
        del self._workers[worker.number]
        self._siblings.gone(worker.number)
        if self._guard is not None:
            self._guard.bury(worker.number, worker.pid)
        if self._stopping:
            return
        if beginning:
            raise ConfigurationError(f"worker {worker.number} ended as it started ({how}); see what it said.")
        now_s = time.monotonic()
        calm = now_s - worker.begun_s > CALM_S
        deaths = self._deaths[worker.number] = 0 if calm else self._deaths.get(worker.number, 0) + 1
        print(f"worker {worker.number} ended ({how}); starting it again.", file=sys.stderr, flush=True)
        self._again_s[worker.number] = now_s + min(0.1 * deaths, 1.0)
        if self._change is not None:
            self._change.waits_for.discard(worker.number)
        if not worker.joined:
            self._reread()

    def _reread(self) -> None:
        """Load anew what was written over where it lay, so that nobody has it any more as it was: else no worker that
        starts could serve it."""
        offers = self._lineup.offers
        for offer, held in zip(offers, self._holder.held(offers), strict=True):
            lost = (NOBODY, 0, "load", offer.endpoint.name)
            if not held and not offering.registered(offer.source) and lost not in self._asked:
                name = offer.endpoint.name
                print(f"{name} was written over where it lay; reading it anew.", file=sys.stderr, flush=True)
                self._asked.append(lost)

    def _hear(self, worker: Worker, message: dict[str, Any]) -> None:
        match message["say"]:
            case "loaded" if worker.generation != self._generation:  # something was changed while it started
                worker.generation = self._generation
                self._tell(worker, "follow", self._lineup.offers)
            case "loaded":
                worker.joined = True
                worker.say(do="listen")
                if self._change is not None and self._change.step == "prepare":
                    self._change.waits_for.add(worker.number)
                    self._tell(worker, "prepare", self._change.offers, change=self._change.number)
            case "ready":
                worker.ready = True
            case "ask":
                self._asked.append((worker.number, message["id"], message["what"], message["model"]))
            case "done":
                change = self._change
                if change is not None and (message["change"], message["step"]) == (change.number, change.step):
                    change.waits_for.discard(worker.number)
                    if message["error"]:
                        self._abandon(message["error"])
            case "failed":
                print(message["error"], file=sys.stderr, flush=True)

    def _advance(self, now_s: float) -> None:
        change = self._change
        if change is not None:
            if now_s > change.until_s:
                self._abandon("a worker did not load the model in time.")
            elif not change.waits_for and change.step == "prepare":
                change.step = "turn"
                self._lineup.offers = change.offers
                self._generation += 1
                change.waits_for = set()
                for worker in self._workers.values():
                    if worker.joined:
                        worker.generation = self._generation
                        worker.say(do="turn", change=change.number)
                        change.waits_for.add(worker.number)
            elif not change.waits_for:
                self._answer(change.asker, None)
                self._change = None
                self._holder.keep(self._lineup.offers)
        self._inquired()
        while self._change is None and self._inquiry is None and self._asked:
            number, identity, what, model = self._asked.popleft()
            asker = number, identity
            with self._answering(asker):
                if isinstance(model, Offer):
                    self._begin(asker, self._lineup.followed(model))
                elif what == "unload":
                    self._begin(asker, self._lineup.unloaded(model))
                elif offering.registered(source := self._lineup.source(model)):
                    self._inquiry = asker, model, Inquiry(source)
                else:
                    self._begin(asker, self._lineup.loaded(model, source))

    def _inquired(self) -> None:
        """Goes on with a load once the registry has answered."""
        if self._inquiry is None or not self._inquiry[2].done():
            return
        (asker, model, inquiry), self._inquiry = self._inquiry, None
        with self._answering(asker):
            self._begin(asker, self._lineup.loaded(model, inquiry.reference, inquiry))

    @contextlib.contextmanager
    def _answering(self, asker: Asker) -> Iterator[None]:
        """What cannot be read is told to who asked; what is served goes on."""
        try:
            yield
        except UserError as error:
            self._answer(asker, str(error))
        except Exception as error:
            log.error("a change failed in a way that no error names", exc_info=error)
            self._answer(asker, f"it could not be read ({type(error).__name__}); the service's log says where.")

    def _begin(self, asker: Asker, offers: list[Offer]) -> None:
        """Have all workers make ready what shall be served instead."""
        self._holder.hold(offers)
        joined = [worker for worker in self._workers.values() if worker.joined]
        change = self._change = _Change(next(self._changes), offers, asker, {worker.number for worker in joined})
        for worker in joined:
            self._tell(worker, "prepare", offers, change=change.number)

    def _tell(self, worker: Worker, what: str, offers: list[Offer], **more: Any) -> None:
        worker.say(do=what, offers=to_plain(offers), held=self._holder.held(offers), **more)

    def _abandon(self, error: str) -> None:
        change = self._change
        if change is not None and change.step == "prepare":
            for worker in self._workers.values():
                worker.say(do="drop")
            self._answer(change.asker, error)
            self._change = None
            self._holder.keep(self._lineup.offers)

    def _answer(self, asker: Asker, error: str | None) -> None:
        number, identity = asker
        if number == NOBODY and error:
            print(f"what is there now is not served: {error}", file=sys.stderr, flush=True)
        if number in self._workers:
            self._workers[number].say(do="answer", id=identity, error=error)

    def _end(self) -> None:
        """Lets workers finish what has begun, and ends those that do not."""
        self._follower.close()
        if self._inquiry is not None:
            self._inquiry[2].close()
        for worker in self._workers.values():
            worker.stop()
        until_s = time.monotonic() + DRAIN_S
        for worker in self._workers.values():
            worker.ended(until_s - time.monotonic())
        self._held.close()
        if self._held_grpc is not None:
            self._held_grpc.close()


def reserve(host: str, port: int) -> tuple[socket.socket, int]:
    """A socket that keeps an address for the workers without listening there, and its port.

    Raises `ConfigurationError` where somebody has the address already, who would otherwise share it unseen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{host}:{port} cannot be had ({reason}); free it or choose another.") from None
    return held, int(held.getsockname()[1])


def supervise(configuration: Configuration) -> int:
    """Be the supervisor until the service ends; 2 where it cannot start, with one sentence."""
    try:
        Supervisor(configuration).run()
    except UserError as error:
        print(f"airserve: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m airserve.serve.supervising CONFIGURATION.json`; 2 where it cannot start, with one sentence."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return supervise(read(Path(given[0])))
    except UserError as error:
        print(f"airserve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
