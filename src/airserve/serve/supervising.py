"""A service of its own: a supervisor and its workers, one process a core, at one address.

The supervisor opens no model and answers nobody: it forks workers, which share a port (SO_REUSEPORT) and a table of
what was counted; starts a worker again when it dies; and leads them through changes of what is served in two steps, so
that a request to any worker sees one truth: all make the new version ready while the old one answers, then all turn to
it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from airserve.contract import to_plain
from airserve.errors import UserError
from airserve.linux import die_with_parent
from airserve.model import ModelError
from airserve.serve import offering, working
from airserve.serve.configuration import Configuration, ConfigurationError, read
from airserve.serve.following import Follower
from airserve.serve.guarding import Guard
from airserve.serve.handing import Siblings
from airserve.serve.holding import Holder
from airserve.serve.inquiring import Inquiry
from airserve.serve.lineup import Lineup
from airserve.serve.metering import Table
from airserve.serve.offering import Offer

STOP = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 0.5  # for a worker that has closed its line, and answers nobody any more
DRAIN_S = 12.0  # a worker's own is shorter
PREPARE_S = 300.0  # for all workers to load a model
NOBODY = -1  # in place of the worker that asks for a change
CALM_S = 5.0  # a worker that lived so long is started again at once, another a little later each time


@final
class _Worker:
    """A forked worker and the supervisor's end of the line to it."""

    def __init__(self, number: int, pid: int, line: socket.socket, generation: int) -> None:
        self.number, self.pid, self.line, self.generation = number, pid, line, generation
        self.begun_s = time.monotonic()
        self.joined = False  # listens, or is about to: it takes part in changes
        self.ready = False
        self._held = b""

    def say(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone is noticed when its line ends
            self.line.sendall(json.dumps(message).encode() + b"\n")

    def heard(self) -> list[dict[str, Any]] | None:
        """The messages that came; None where the line has ended."""
        try:
            data = self.line.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._held = (self._held + data).split(b"\n")
        return [json.loads(line) for line in lines]


@final
class _Change:
    """What shall be served instead, who asked for it, and which workers have yet to follow."""

    def __init__(self, offers: list[Offer], asker: tuple[int, int], waits_for: set[int]) -> None:
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
        self._workers: dict[int, _Worker] = {}
        self._again_s: dict[int, float] = {}  # when a worker that died is to be started
        self._deaths: dict[int, int] = {}
        self._change: _Change | None = None
        self._asked: deque[tuple[int, int, str, str | Offer]] = deque()
        self._inquiry: tuple[tuple[int, int], str, Inquiry] | None = None  # of a load: who asks, and for which model
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
        ours, theirs = socket.socketpair()
        parent, held = os.getpid(), self._holder.held(self._lineup.offers)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # the child is not to meet one with our handlers
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                for worker in self._workers.values():
                    worker.line.close()
                for handled in STOP:
                    signal.signal(handled, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
                die_with_parent(parent)
                shared = working.Shared(self._table, self._guard, self._siblings)
                offers = self._lineup.offers
                status = working.run(self._configuration, shared, number, offers, held, theirs)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        theirs.close()
        self._workers[number] = _Worker(number, pid, ours, self._generation)

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
        for number in [number for number, at_s in self._again_s.items() if at_s <= now_s]:
            del self._again_s[number]
            self._start(number)
        for offer in self._follower.look(now_s, self._lineup.offers):
            self._asked.append((NOBODY, 0, "follow", offer))
        self._advance(now_s)

    def _bury(self, worker: _Worker, beginning: bool) -> None:
        worker.line.close()
        status = _ended(worker.pid, GRACE_S)
        del self._workers[worker.number]
        self._siblings.gone(worker.number)
        if self._guard is not None:
            self._guard.bury(worker.number, worker.pid)
        if self._stopping:
            return
        if beginning:
            raise ConfigurationError(f"worker {worker.number} ended as it started ({_how(status)}); see what it said.")
        now_s = time.monotonic()
        calm = now_s - worker.begun_s > CALM_S
        deaths = self._deaths[worker.number] = 0 if calm else self._deaths.get(worker.number, 0) + 1
        print(f"worker {worker.number} ended ({_how(status)}); starting it again.", file=sys.stderr, flush=True)
        self._again_s[worker.number] = now_s + min(0.1 * deaths, 1.0)
        if self._change is not None:
            self._change.waits_for.discard(worker.number)

    def _hear(self, worker: _Worker, message: dict[str, Any]) -> None:
        match message["say"]:
            case "loaded" if worker.generation != self._generation:  # something was changed while it started
                worker.generation = self._generation
                self._tell(worker, "follow", self._lineup.offers)
            case "loaded":
                worker.joined = True
                worker.say(do="listen")
                if self._change is not None and self._change.step == "prepare":
                    self._change.waits_for.add(worker.number)
                    self._tell(worker, "prepare", self._change.offers)
            case "ready":
                worker.ready = True
            case "ask":
                self._asked.append((worker.number, message["id"], message["what"], message["model"]))
            case "done":
                if self._change is not None and message["step"] == self._change.step:
                    self._change.waits_for.discard(worker.number)
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
                        worker.say(do="turn")
                        change.waits_for.add(worker.number)
            elif not change.waits_for:
                self._answer(change.asker, None)
                self._change = None
                self._holder.keep(self._lineup.offers)
        self._inquired()
        while self._change is None and self._inquiry is None and self._asked:
            number, identity, what, model = self._asked.popleft()
            asker = number, identity
            try:
                if isinstance(model, Offer):
                    self._begin(asker, self._lineup.followed(model))
                elif what == "unload":
                    self._begin(asker, self._lineup.unloaded(model))
                elif offering.registered(source := self._lineup.source(model)):
                    self._inquiry = asker, model, Inquiry(source)
                else:
                    self._begin(asker, self._lineup.loaded(model, source))
            except UserError as error:
                self._answer(asker, str(error))

    def _inquired(self) -> None:
        """Goes on with a load once the registry has answered."""
        if self._inquiry is None or not self._inquiry[2].done():
            return
        (asker, model, inquiry), self._inquiry = self._inquiry, None
        try:
            self._begin(asker, self._lineup.loaded(model, inquiry.reference, inquiry))
        except UserError as error:
            self._answer(asker, str(error))

    def _begin(self, asker: tuple[int, int], offers: list[Offer]) -> None:
        """Have all workers make ready what shall be served instead."""
        self._holder.hold(offers)
        joined = [worker for worker in self._workers.values() if worker.joined]
        self._change = _Change(offers, asker, {worker.number for worker in joined})
        for worker in joined:
            self._tell(worker, "prepare", offers)

    def _tell(self, worker: _Worker, what: str, offers: list[Offer]) -> None:
        worker.say(do=what, offers=to_plain(offers), held=self._holder.held(offers))

    def _abandon(self, error: str) -> None:
        change = self._change
        if change is not None and change.step == "prepare":
            for worker in self._workers.values():
                worker.say(do="drop")
            self._answer(change.asker, error)
            self._change = None
            self._holder.keep(self._lineup.offers)

    def _answer(self, asker: tuple[int, int], error: str | None) -> None:
        number, identity = asker
        if number == NOBODY and error:
            print(f"what the registry has now is not served: {error}", file=sys.stderr, flush=True)
        if number in self._workers:
            self._workers[number].say(do="answer", id=identity, error=error)

    def _end(self) -> None:
        """Lets workers finish what has begun, and ends those that do not."""
        self._follower.close()
        if self._inquiry is not None:
            self._inquiry[2].close()
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
        until_s = time.monotonic() + DRAIN_S
        for worker in self._workers.values():
            _ended(worker.pid, until_s - time.monotonic())
            worker.line.close()
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


def _ended(pid: int, within_s: float) -> int:
    """The status of a child that is about to end; killed where it does not."""
    until_s = time.monotonic() + within_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > until_s:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.005)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"status {os.WEXITSTATUS(status)}"


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
