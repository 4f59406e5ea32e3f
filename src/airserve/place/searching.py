"""The search for a Plan: which candidates are open, and the choice for each Service with the others as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

from airserve.catalog import planners
from airserve.place.bounds import Bound, asked_hz, bound, dominates
from airserve.place.candidates import (
    PlanError,
    Scores,
    Weights,
    candidates,
    cost,
    fits,
    refusals,
    too_far,
    variant_of,
)
from airserve.place.description import Factory, Service
from airserve.place.judging import SEARCH, Judge, Said
from airserve.place.plan import Candidate
from airserve.place.profiling import Profile
from airserve.registry import Registry

ROUNDS = 4  # of choosing for each service with the others as they are


@final
class Search:
    """Candidates of every service, and the choice among them."""

    def __init__(
        self,
        factory: Factory,
        known: Profile,
        registry: Registry,
        judge: Judge,
        scale: float,
        weights: Weights,
        planner: str,
    ) -> None:
        self.factory, self.known, self.registry, self.judge, self.scale = factory, known, registry, judge, scale
        self.weights = weights
        self.choose = planners[planner]
        self.scores = Scores(factory, known, registry)
        self.services = [service for service in factory.services if service.model is not None]
        self.stated = [service for service in judge.promised if service.model is None]
        self.every: dict[str, list[Candidate]] = {}
        self.open: dict[str, list[Candidate]] = {}  # those that no rule refuses before a simulation
        self.refused: dict[str, dict[str, str]] = {}
        self.too_large: dict[str, list[str]] = {}
        self._asked_hz: dict[str, float] = {}
        for service in self.services:
            self._sort(service)

    def _sort(self, service: Service) -> None:
        assert service.model is not None
        profiled = self.known.of(service.model)
        every = candidates(service, self.factory, profiled, self.registry)
        refused = refusals(service, profiled)
        sized = [(one, fits(one, variant_of(one, profiled), self.factory.network)) for one in every]
        pinned = service.pin.variant if service.pin else None
        free = [one for one, large in sized if not large and (one.variant not in refused or one.variant == pinned)]
        if not free:
            large = next((text for _, text in sized if text), "")
            raise PlanError(f"service {service.name}: {large or next(iter(refused.values()))}.")
        self.every[service.name], self.open[service.name] = every, free
        self.refused[service.name] = refused
        self.too_large[service.name] = [text for _, text in sized if text]

    def cost(self, service: Service, candidate: Candidate) -> float:
        return cost(candidate, service, self.factory.network, self.weights)

    def bound(self, service: Service, candidate: Candidate, scale: float | None = None) -> Bound:
        until_s = self.judge.until_s(1.0)
        if service.name not in self._asked_hz:  # a trace of arrivals is read once
            self._asked_hz[service.name] = asked_hz(service, until_s)
        return bound(
            candidate,
            service,
            self.factory.network,
            until_s,
            self.scale if scale is None else scale,
            self._asked_hz[service.name],
        )

    def accepted(self, service: Service, candidate: Candidate) -> str:
        """Empty, or why the candidate's score misses the accuracy promise."""
        assert service.promise is not None
        drop = service.promise.max_accuracy_drop
        scored = self.scores.of(service, candidate)
        if drop is None or scored.score is None or scored.before is None or scored.before - scored.score <= drop + 1e-9:
            return ""
        return too_far(scored.metric, scored.score, scored.before, scored.scored, drop)

    def first(self, service: Service, among: Sequence[Candidate]) -> Candidate:
        """The candidate whose lower bound is lowest, of those whose score need not be measured where there are any."""
        known = [one for one in among if one.encoding != "int8"] or among
        return min(known, key=lambda one: self.bound(service, one).ms)

    def one(
        self, service: Service, among: Sequence[Candidate], others: Mapping[str, Candidate], keepable: Sequence[str]
    ) -> tuple[Candidate | None, dict[int, Said]]:
        """The cheapest that keeps its own promise and those of the others that can be kept."""
        assert service.promise is not None
        watched = [service.name, *(name for name in keepable if name != service.name)]
        best, said = self.choose(
            among,
            cost=partial(self.cost, service),
            bound_ms=lambda one: self.bound(service, one).ms,
            promise_ms=service.promise.latency_ms,
            judge=lambda one: self.judge.search({**others, service.name: one}, self.scale, *watched),
            keeps=lambda told: self.judge.keeps(told, watched),
            accepted=lambda one: not self.accepted(service, one),
            dominates=dominates,
        )
        return best, said

    def all(self) -> dict[str, tuple[Candidate, bool]]:
        """For every service what is chosen, and whether its promise is kept; chosen in turn until nothing changes."""
        now = {service.name: self.first(service, self.open[service.name]) for service in self.services}
        told = self.judge.say(now, self.scale, *self.firm)
        kept = {service.name: self.judge.keeps(told, [service.name]) for service in self.services}
        kept |= {service.name: self._keepable(service, now) for service in self.stated}
        for _ in range(ROUNDS):
            before = dict(now)
            for service in self.services:
                keepable = [name for name, held in kept.items() if held]
                best, said = self.one(service, self.open[service.name], now, keepable)
                kept[service.name] = best is not None
                now[service.name] = best or self._nearest(service, said)
            if all(now[name] is before[name] for name in now):
                break
        together = self.judge.say(now, self.scale, *self.firm)
        return {name: (one, kept[name] and self.judge.keeps(together, [name])) for name, one in now.items()}

    def _keepable(self, stated: Service, now: Mapping[str, Candidate]) -> bool:
        """Whether a Service that states its sizes keeps its promise beside these ways, or those that disturb least."""
        least = {one.name: min(self.open[one.name], key=partial(_load, stated.site)) for one in self.services}
        said = (self.judge.say(ways, self.scale, *self.firm) for ways in (now, least))
        return any(self.judge.keeps(one, [stated.name]) for one in said)

    @property
    def firm(self) -> tuple[int, int, float]:
        """Stream, runs and seconds of a run that a choice rests on: those of a search that comes near."""
        return SEARCH, 3, self.judge.until_s(1.0)

    def _nearest(self, service: Service, said: Mapping[int, Said]) -> Candidate:
        """Where nothing keeps the promise: the fastest that was simulated, else the one with the lowest bound."""
        among = self.open[service.name]
        fair = {i: told for i, told in said.items() if not self.accepted(service, among[i])}
        if fair:
            return among[min(fair, key=lambda i: fair[i].verdicts[service.name].value_ms)]
        return self.first(service, among)


def _load(site: str | None, candidate: Candidate) -> tuple[float, float]:
    """What a request asks of all others' air, bytes, and then of a site, seconds; on average."""
    if not candidate.site:
        return 0.0, 0.0
    seconds = float(candidate.site_seconds.mean()) if candidate.site == site else 0.0
    return float(candidate.bytes_up.mean() + candidate.bytes_down.mean()), seconds
