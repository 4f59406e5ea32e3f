"""One process per deployment that keeps running what is wanted: `python -m airserve.place.supervisor RUN_DIR`.

It compares what is wanted with what runs and acts on the difference, so that a start, a death and a changed
Deployment are the same thing to it. SIGHUP: read the Deployment again. SIGTERM, SIGINT: stop everything and end.
Its children die with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, final

from airserve import airlog
from airserve.contract import Deployment, from_plain
from airserve.errors import UserError
from airserve.linux import born
from airserve.place.sites import Site, Started, Unit, units
from airserve.place.sites.process import ProcessSite

AT_ONCE = 4 * (os.cpu_count() or 1)  # starting: more only take the cores from each other
SOON_S = 1.0  # what dies sooner after its start than this is started again later and later
BACKOFF_S = (0.1, 5.0)  # first and longest
STOP_S = 3.0  # from the request to end until the end is forced
POLL_S = 0.05  # while something starts or stops; else the supervisor sleeps until a signal
DEPLOYMENT, STATE = "deployment.json", "state.json"  # in the folder of a deployment
SIGNALS = {signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT}


class SupervisorError(UserError):
    """A deployment that cannot be supervised; the message is one sentence for the user."""


class Start(NamedTuple):
    unit: Unit


class Stop(NamedTuple):
    unit: Unit


def steps(wanted: frozenset[Unit], running: frozenset[Unit]) -> list[Start | Stop]:
    """Start before stop, so that the service has no gap; only what holds an address that is needed stops first.

    >>> a, b = Unit("mast", "1", ("h:1",)), Unit("mast", "2", ("h:2",))
    >>> [type(step).__name__ for step in steps(frozenset({b}), frozenset({a}))]
    ['Start', 'Stop']
    >>> steps(frozenset({a}), frozenset({a}))
    []
    """
    new, old = sorted(wanted - running), sorted(running - wanted)
    needed = {address for unit in new for address in unit.addresses}
    first = [unit for unit in old if needed & set(unit.addresses)]
    last = [unit for unit in old if unit not in first]
    return [*map(Stop, first), *map(Start, new), *map(Stop, last)]


@dataclass
class Life:
    """What is known of a Unit's starts so far."""

    starts: int = 0
    ready_once: bool = False
    quick_deaths: int = 0
    next_s: float = 0.0
    error: str = ""


@final
class Supervisor:
    """Keeps `wanted` running by `site`. `tick` does what is due and says when to call it again."""

    def __init__(self, site: Site, wanted: frozenset[Unit]) -> None:
        self.site = site
        self.wanted = wanted
        self.running: dict[Unit, tuple[Started, float]] = {}  # with the time of the start
        self.stopping: dict[Unit, tuple[Started, float]] = {}  # with the time when its end is forced
        self.lives: dict[Unit, Life] = {}

    def tick(self, now_s: float) -> float | None:
        """Act on the difference; returns the time of the next tick, None where only a signal can change anything."""
        self._bury(now_s)
        starting = self._starting()
        waiting = []
        for step in steps(self.wanted, frozenset(self.running)):
            if isinstance(step, Stop):
                started, _ = self.running.pop(step.unit)
                started.stop()
                self.stopping[step.unit] = started, now_s + STOP_S
            elif (life := self.lives.setdefault(step.unit, Life())).next_s > now_s:
                waiting.append(life.next_s)
            elif starting < AT_ONCE and not self._taken(step.unit):
                starting += 1
                life.starts += 1
                self.running[step.unit] = self.site.start(step.unit), now_s
        if starting or self.stopping:
            waiting.append(now_s + POLL_S)
        return min(waiting, default=None)

    def stop(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Stop everything; returns when nothing runs."""
        self.wanted = frozenset()
        while True:
            self.tick(time.monotonic())
            if not (self.running or self.stopping):
                return
            sleep(POLL_S)

    def state(self) -> dict[str, dict[str, Any]]:
        """Every wanted Unit by key, for people and for `up`."""
        found = {}
        for unit in sorted(self.wanted):
            started = self.running.get(unit, (None,))[0]
            life = self.lives.get(unit, Life())
            found[unit.key] = {
                "state": started.state() if started else "waiting",
                "pid": started.pid if started else 0,
                "restarts": max(life.starts - 1, 0),
                "ready_once": life.ready_once,
                "error": life.error,
                "addresses": list(unit.addresses),
            }
        return found

    def _bury(self, now_s: float) -> None:
        for unit, (started, since_s) in list(self.running.items()):
            life, state = self.lives[unit], started.state()
            if state == "ready":
                life.ready_once = True
            elif state == "ended":
                del self.running[unit]
                life.error = started.last_words()
                life.quick_deaths = life.quick_deaths + 1 if now_s - since_s < SOON_S or not life.ready_once else 0
                first_s, longest_s = BACKOFF_S
                pause_s = min(first_s * 2 ** (life.quick_deaths - 1), longest_s) if life.quick_deaths else 0.0
                life.next_s = now_s + pause_s
        for unit, (started, force_s) in list(self.stopping.items()):
            if started.state() == "ended":
                del self.stopping[unit]
            elif now_s >= force_s:
                started.kill()

    def _starting(self) -> int:
        return sum(started.state() == "starting" for started, _ in self.running.values())

    def _taken(self, unit: Unit) -> bool:
        return any(set(unit.addresses) & set(other.addresses) for other in self.stopping)


def run(run_dir: Path, site: Site) -> None:
    """Supervise the Deployment in `run_dir` until SIGTERM or SIGINT. Raises `SupervisorError` where it has one."""
    with _only_one(run_dir):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for name in (airlog.LOG, airlog.USAGE_LOG, airlog.STATUS):  # of an earlier life
            (run_dir / name).unlink(missing_ok=True)
        wanted, digest = _read(run_dir)
        supervisor = Supervisor(site, wanted)
        try:
            _watch(supervisor, run_dir, digest)
        finally:
            supervisor.stop()
            (run_dir / STATE).unlink(missing_ok=True)


def _watch(supervisor: Supervisor, run_dir: Path, digest: str) -> None:
    written = ""
    while True:
        next_s = supervisor.tick(time.monotonic())
        me = {"pid": os.getpid(), "born": born(os.getpid())}
        state = json.dumps({"supervisor": me, "deployment": digest, "units": supervisor.state()}, indent=1)
        if state != written:
            write(run_dir / STATE, state.encode())
            written = state
        timeout_s = 3600.0 if next_s is None else max(next_s - time.monotonic(), 0)
        received = signal.sigtimedwait(SIGNALS, timeout_s)
        if received is None or received.si_signo == signal.SIGCHLD:
            continue
        if received.si_signo != signal.SIGHUP:
            return
        supervisor.wanted, digest = _read(run_dir)


def write(path: Path, data: bytes) -> None:
    """A file as a whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_bytes(data)
    new.replace(path)


def _read(run_dir: Path) -> tuple[frozenset[Unit], str]:
    data = (run_dir / DEPLOYMENT).read_bytes()
    return units(from_plain(Deployment, json.loads(data))), hashlib.sha256(data).hexdigest()


def _only_one(run_dir: Path) -> IO[bytes]:
    lock = open(run_dir / "lock", "ab")  # noqa: SIM115  (held for life)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SupervisorError(f"{run_dir} has a supervisor already; take it down first.") from None
    return lock


def main() -> int:
    """Exit status 0, or 2 with a sentence where it cannot start."""
    if len(sys.argv) != 2:
        print("usage: python -m airserve.place.supervisor RUN_DIR", file=sys.stderr)
        return 2
    run_dir = Path(sys.argv[1])
    try:
        run(run_dir, ProcessSite(run_dir))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
