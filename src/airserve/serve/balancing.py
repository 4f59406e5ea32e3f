"""Several places that answer the same: which is asked, again where one fails, and what is only tried beside.

Inference may be repeated, so a request whose place dies goes to another: within a budget (`retrying`) and within its
deadline. Places that are dead are found in under a second (`ejecting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar, final

from airserve.contract import Route
from airserve.serve.connecting import Answer, Refused, Upstream, UpstreamFailed, UpstreamLate
from airserve.serve.ejecting import PROBE_EVERY_S, PROBE_WITHIN_S, Health
from airserve.serve.retrying import Budget
from airserve.timing import AirBytes

ELSEWHERE = frozenset((502, 503))  # answers that another place may not give
IDLE_S = 5.0  # unasked for so long, a place that is in is no longer probed
MIRRORED = 16  # copies under way to a mirror; beyond, none is made

Q = TypeVar("Q")  # a request, as it goes to a place: a whole HTTP request, or a call of gRPC
Asks = TypeVar("Asks", contravariant=True)
Write = Callable[[Route], Q]


@dataclass(frozen=True)
class Manner:
    """How places are asked. With `probes` off nothing is ejected and nothing is waited for: for a single place."""

    attempts: int = 3  # of one request
    ratio: float = 0.1  # of the requests may be retries
    reserve: int = 100  # retries beside
    patience_s: float = 2.0  # waited for a place to come back where none is in: a worker that dies is back in that time
    hedge_s: float | None = None  # after so long a second place is asked as well, out of the same budget; None: never
    connections: int = 16  # to each place
    connect_s: float = 0.5
    probes: bool = True


class Sent(NamedTuple):
    """An answer, where request and answer lie on their connection, and who gave it."""

    answer: Answer
    air: AirBytes
    route: Route


class Placed(NamedTuple):
    """A place as it is now, and what it was asked."""

    route: Route
    out: bool
    waiting: int  # requests without an answer yet
    answered: int
    failed: int  # requests that it lost


class Asked(Protocol[Asks]):
    """What a place is asked by: an `Upstream`, or a `Caller`."""

    @property
    def waiting(self) -> int: ...

    async def exchange(self, request: Asks, deadline_s: float) -> tuple[Answer, AirBytes]: ...

    async def ready(self, deadline_s: float) -> bool: ...

    def abort(self, why: str) -> None: ...

    def close(self) -> None: ...


Open = Callable[[Route, Manner], Asked[Q]]


@dataclass
class Counts:
    """What a Balancer has done. `mirrored` counts copies that were answered, `unmirrored` those that were not."""

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    ejections: int = 0
    mirrored: int = 0
    unmirrored: int = 0


def upstream(route: Route, manner: Manner) -> Upstream:
    return Upstream(route, manner.connections, manner.connect_s)


def pick(weights: Sequence[float], waiting: Sequence[int], rng: random.Random) -> int:
    """Which of several places is asked: by weight, and among equal weights the less busy of two drawn.

    Two choices: Mitzenmacher, "The power of two choices in randomized load balancing", 2001. Places of weight 0 are
    in reserve: asked where there are no others.

    >>> pick([0.0, 1.0], [0, 9], random.Random(0)), pick([0.0], [0], random.Random(0))
    (1, 0)
    """
    some = [k for k, weight in enumerate(weights) if weight > 0] or list(range(len(weights)))
    if len({weights[k] for k in some}) == 1:
        drawn = rng.sample(some, min(2, len(some)))
        return min(drawn, key=lambda k: waiting[k])
    return rng.choices(some, [weights[k] for k in some])[0]


@final
class _Place(Generic[Q]):
    """A route, its connections and its health."""

    def __init__(self, route: Route, asked: Asked[Q]) -> None:
        self.route, self.asked = route, asked
        self.health = Health()
        self.proof_s = -1e9  # when it last answered
        self.due = asyncio.Event()  # a probe is, at once
        self.proved = False  # it has answered, or passed a probe
        self.answered = self.failed = 0

    def __str__(self) -> str:
        return self.route.model or "the model"  # not its address, which is not for whoever asks a gateway


@final
class Balancer(Generic[Q]):
    """Asks one of several places, as their Routes say. Made inside a running loop.

    Routes with `mirror` get copies of that share of the requests, whose answers nobody waits for.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        manner: Manner | None = None,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        opens: Open[Q] = upstream,  # type: ignore[assignment]  # of a balancer of HTTP requests
    ) -> None:
        self.manner = manner = manner or Manner()
        self.counts = Counts()
        self._rng, self._clock = rng or random.Random(), clock
        places = [_Place(route, opens(route, manner)) for route in routes]
        self._places = [place for place in places if not place.route.mirror]
        self._mirrors = [place for place in places if place.route.mirror]
        self._budget = Budget(manner.ratio, manner.reserve)
        self._back = asyncio.Event()  # set, and put in place anew, when a place comes back
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked_s = -1e9
        self._watched = False

    @property
    def out(self) -> list[Route]:
        """The places that are not asked now."""
        return [place.route for place in self._places if place.health.out]

    @property
    def places(self) -> list[Placed]:
        """All of them, the mirrors last."""
        every = (*self._places, *self._mirrors)
        return [Placed(p.route, p.health.out, p.asked.waiting, p.answered, p.failed) for p in every]

    async def send(self, write: Write[Q], deadline_s: float) -> Sent:
        """The answer to a request; `deadline_s` is of `time.monotonic`.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        self.counts.requests += 1
        self._budget.earn()
        if self.manner.probes:
            self._watch_all()
        for mirror in self._mirrors:
            self._copy(mirror, write, deadline_s)
        if self.manner.hedge_s is None:
            return await self._persist(write, deadline_s, [])
        return await self._hedge(self.manner.hedge_s, write, deadline_s)

    def look(self) -> bool:
        """Whether a place is in and has shown that it answers, as far as is known; it is found out from now on."""
        if not self.manner.probes:
            return True
        first = not self._watched
        self._watch_all()
        if first:
            for place in self._places:
                place.due.set()
        return any(place.proved and not place.health.out for place in self._places)

    def close(self) -> None:
        """End all connections and tasks, once nothing is awaited any more."""
        for task in self._tasks:
            task.cancel()
        for place in (*self._places, *self._mirrors):
            place.asked.close()

    async def _persist(self, write: Write[Q], deadline_s: float, tried: list[_Place[Q]]) -> Sent:
        """Ask one place after another until one answers, or there is no time, budget or attempt left."""
        attempt, refused = 0, None
        patience_s = self.manner.patience_s
        while True:
            attempt += 1
            begun_s = self._clock()
            place = await self._choose(tried, min(deadline_s, begun_s + patience_s))
            patience_s -= self._clock() - begun_s
            tried.append(place)
            try:
                answer, air = await place.asked.exchange(write(place.route), deadline_s)
            except OSError as error:
                if isinstance(error, TimeoutError) and error.errno is None:  # ours: the kernel's have a number
                    late = f"{place} did not answer before the deadline; see that its site runs."
                    raise UpstreamLate(late) from None
                self._failed(place)
                failure = f"{place} cannot be asked ({_reason(error)}); see that its site runs."
            except Refused:
                self._answered(place)
                raise
            else:
                self._answered(place)
                refused = Sent(answer, air, place.route)
                if answer.status not in ELSEWHERE or not self._others(tried):
                    return refused
                failure = ""
            if attempt >= self.manner.attempts or self._clock() >= deadline_s or not self._budget.take():
                if refused is not None:
                    return refused
                raise UpstreamFailed(failure)
            self.counts.retries += 1

    async def _choose(self, tried: Sequence[_Place[Q]], until_s: float) -> _Place[Q]:
        """A place that is in and was not tried yet, where there is one; where none is in, one may come back by then."""
        while self.manner.probes and all(place.health.out for place in self._places):
            if (within_s := until_s - self._clock()) <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._back.wait()
        there = [place for place in self._places if not place.health.out] or self._places
        fresh = [place for place in there if place not in tried] or there
        return fresh[pick([p.route.weight for p in fresh], [p.asked.waiting for p in fresh], self._rng)]

    def _others(self, tried: Sequence[_Place[Q]]) -> bool:
        return any(not place.health.out and place not in tried for place in self._places)

    async def _hedge(self, after_s: float, write: Write[Q], deadline_s: float) -> Sent:
        """Ask a second place where the first is slow; the first answer counts (Dean, Barroso, "The tail at scale")."""
        tried: list[_Place[Q]] = []
        asking = {asyncio.ensure_future(self._persist(write, deadline_s, tried))}
        try:
            done, _ = await asyncio.wait(asking, timeout=min(after_s, max(deadline_s - self._clock(), 0)))
            if not done and self._others(tried) and self._budget.take():
                self.counts.hedges += 1
                asking.add(asyncio.ensure_future(self._persist(write, deadline_s, tried)))
            while True:
                done, rest = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                good = [one for one in done if one.exception() is None]
                if good or not rest:
                    return (good or list(done))[0].result()
                asking = rest
        finally:
            for one in asking:
                one.cancel()

    def _copy(self, mirror: _Place[Q], write: Write[Q], deadline_s: float) -> None:
        if mirror.route.weight < 1 and self._rng.random() >= mirror.route.weight:
            return
        if mirror.asked.waiting >= MIRRORED:
            self.counts.unmirrored += 1
            return

        async def copied() -> None:
            try:
                await mirror.asked.exchange(write(mirror.route), deadline_s)
            except Refused:
                pass
            except OSError:  # TimeoutError is one
                self.counts.unmirrored += 1
                mirror.failed += 1
                return
            self.counts.mirrored += 1
            mirror.answered += 1

        self._spawn(copied())  # begins once the request itself is on its way

    def _answered(self, place: _Place[Q]) -> None:
        place.health.answered()
        place.answered += 1
        place.proof_s, place.proved = self._clock(), True

    def _failed(self, place: _Place[Q]) -> None:
        place.failed += 1
        if self.manner.probes and place.health.failed(self._clock()):
            self.counts.ejections += 1
            place.due.set()

    def _watch_all(self) -> None:
        now_s = self._clock()
        if not self._watched:
            self._watched = True
            for place in self._places:
                self._spawn(self._watch(place))
        elif now_s > self._asked_s + IDLE_S:
            for place in self._places:
                place.due.set()
        self._asked_s = now_s

    async def _watch(self, place: _Place[Q]) -> None:
        """Probe a place that nothing else has proved alive, on a connection of its own, for ever."""
        clock, wait_s = self._clock, PROBE_EVERY_S
        while True:
            idle = clock() > self._asked_s + IDLE_S and not place.health.out
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if idle else wait_s):
                    await place.due.wait()
            place.due.clear()
            proved_s = place.proof_s + PROBE_EVERY_S - clock()
            if proved_s > 0 and not place.health.out:
                wait_s = proved_s
                continue
            wait_s = PROBE_EVERY_S
            try:
                ready = await place.asked.ready(clock() + PROBE_WITHIN_S)
            except TimeoutError:
                wait_s = 0.0  # ask again at once
                if place.health.missed(clock()):
                    self.counts.ejections += 1
                    if not all(other.health.out for other in self._places):
                        place.asked.abort("it does not answer probes")  # what waits there goes elsewhere
                if place.health.out:
                    wait_s = PROBE_EVERY_S
                continue
            except OSError:
                ready = False
            if not ready:
                self.counts.ejections += place.health.failed(clock())
                continue
            place.proved = True
            if place.health.probed(clock()):
                self._back.set()
                self._back = asyncio.Event()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reason(error: OSError) -> str:
    """Why a place cannot be asked. The system's own words name its address, so they are not used.

    >>> _reason(ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 8000)"))
    'Connection refused'
    """
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if error.errno:
        return os.strerror(error.errno)
    return str(error) if isinstance(error, ConnectionError) else "no connection"
