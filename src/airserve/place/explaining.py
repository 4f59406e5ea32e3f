"""Why a Plan is as it is: what is predicted of the chosen way, and why each runner-up lost, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from airserve.place.candidates import candidates, realised
from airserve.place.counting import most_devices
from airserve.place.description import Service
from airserve.place.freeing import limit
from airserve.place.judging import PREDICT
from airserve.place.plan import Candidate, Choice, RunnerUp, Stated
from airserve.place.searching import Search

PREDICTED_RUNS = 6
TRIED_CUTS = 6  # ways of a family that are simulated to tell its best


@final
class Explanation:
    """What was chosen, in numbers and sentences: predictions, runners-up, how many devices, and what binds."""

    def __init__(self, search: Search, chosen: Mapping[str, tuple[Candidate, bool]]) -> None:
        self.search, self.judge = search, search.judge
        self.chosen = {name: self._whole(name, one) for name, (one, _) in chosen.items()}
        self.predicted = self.judge.say(
            self.chosen, 1.0, PREDICT, PREDICTED_RUNS, self.judge.until_s(3.0), interval=True
        )
        self.with_headroom = self.judge.say(self.chosen, search.scale, *search.firm)
        stated = {service.name: self.judge.keeps(self.with_headroom, [service.name]) for service in search.stated}
        self.kept = {name: held for name, (_, held) in chosen.items()} | stated

    def _whole(self, name: str, candidate: Candidate) -> Candidate:
        service = self.search.factory.service(name)
        assert service.model is not None
        scored = self.search.scores.of(service, candidate)
        return realised(scored, self.search.known.of(service.model), self.search.registry)

    def choices(self) -> tuple[Choice, ...]:
        """For every Service with a model what was chosen, and all that is said of it."""
        return tuple(self._choice(service) for service in self.search.services)

    def stated(self) -> tuple[Stated, ...]:
        """For every Service with a promise and stated sizes what is predicted of it."""
        found = []
        for service in self.search.stated:
            assert service.promise is not None
            said = self.predicted.verdicts[service.name]
            plain = service.promise.plain()
            found.append(Stated(service.name, plain, said.value_ms, said.interval_ms, self.kept[service.name]))
        return tuple(found)

    def limits(self) -> tuple[str, ...]:
        """For every Service whose promise nothing keeps: what binds, and what would free it."""
        return tuple(
            limit(self.judge, self.chosen, service, self.search.scale)
            for service in (*self.search.services, *self.search.stated)
            if not self.kept[service.name]
        )

    def _choice(self, service: Service) -> Choice:
        assert service.promise is not None
        name, promise = service.name, service.promise.plain()
        chosen, said = self.chosen[name], self.predicted.verdicts[name]
        runners_up = self._runners_up(service)
        most, binds, capacity = most_devices(self.judge, self.chosen, service)
        return Choice(
            service=name,
            promise=promise,
            chosen=chosen,
            predicted_ms=said.value_ms,
            predicted_interval_ms=said.interval_ms,
            cost=self.search.cost(service, chosen),
            kept=self.kept[name],
            why=self._why(service, runners_up),
            runners_up=tuple(runners_up),
            max_devices=most,
            binds=binds,
            capacity=capacity,
            refused=(*self.search.refused[name].values(), *self.search.too_large[name]),
        )

    def _why(self, service: Service, runners_up: Sequence[RunnerUp]) -> str:
        assert service.promise is not None
        promise, chosen = service.promise, self.chosen[service.name]
        said, padded = (where.verdicts[service.name] for where in (self.predicted, self.with_headroom))
        number = len(self.search.open[service.name])
        q, head = f"p{promise.percentile:g}", f"{self.search.scale - 1:.0%}".replace("%", " %")
        text = f"{q} {_ms(said.value_ms)}, {_ms(padded.value_ms)} with {head} headroom"
        if not said.requests:
            return "too few requests: the twin was not asked once"
        refused = self.search.accepted(service, chosen)
        if refused:
            return f"pinned, and not as accurate as promised: {refused} ({text})"
        if not self.kept[service.name]:
            among = "the way that is pinned" if number == 1 else f"the nearest of {number} ways"
            return f"{among}, and it misses {promise.latency_ms:g} ms: {text}"
        among = "pinned, and it keeps" if number == 1 else f"the cheapest of {number} ways that keeps"
        plain = [one for one in runners_up if one.candidate.cut in ("none", "input") and one.judged_by == "twin"]
        best = min(plain, key=lambda one: one.predicted_ms, default=None)
        against = ""
        if best is not None and chosen.cut not in ("none", "input"):
            against = f"; {_gain(said.value_ms - best.predicted_ms)} the better of device-alone and send-the-input"
        cost = self.search.cost(service, chosen)
        return f"{among} {promise.latency_ms:g} ms, at cost {cost:.3g}: {text}{against}"

    def _runners_up(self, service: Service) -> list[RunnerUp]:
        """The best of each family that lost: device alone, the input sent to each site, the best cut."""
        every = self.search.every[service.name]
        if service.pin is not None:  # what is pinned is compared with all there is
            assert service.model is not None
            free = service.model_copy(update={"pin": None})
            every = candidates(free, self.search.factory, self.search.known.of(service.model), self.search.registry)
        refused = self.search.refused[service.name]
        families: dict[str, list[Candidate]] = {}
        for one in every:
            family = one.cut if one.cut in ("none", "input") else "cut"
            variant = one.variant if family == "none" else ""
            families.setdefault(f"{family} {one.site if family == 'input' else ''} {variant}", []).append(one)
        found = []
        for among in families.values():
            fair = [one for one in among if one.variant not in refused] or among
            best = self._best(service, fair)
            if best is not None:
                found.append(self._lost(service, best))
        return sorted(found, key=lambda one: one.predicted_ms)

    def _best(self, service: Service, among: Sequence[Candidate]) -> Candidate | None:
        """Of a family: the cheapest that keeps the promise, else the fastest."""
        if any(one.label == self.chosen[service.name].label for one in among):
            return None
        bounds = {id(one): self.search.bound(service, one).ms for one in among}
        near = sorted(among, key=lambda one: bounds[id(one)])
        assert service.promise is not None
        hopeful = [one for one in near if bounds[id(one)] <= service.promise.latency_ms]
        if not hopeful:
            return near[0]
        by_cost = sorted(hopeful, key=lambda one: self.search.cost(service, one))
        tried = list({id(one): one for one in (*hopeful[: TRIED_CUTS // 2], *by_cost[: TRIED_CUTS // 2])}.values())
        others = {name: one for name, one in self.chosen.items() if name != service.name}
        best, said = self.search.one(service, tried, others, ())
        if best is not None:
            return best
        return tried[min(said, key=lambda i: said[i].verdicts[service.name].value_ms)] if said else near[0]

    def _lost(self, service: Service, candidate: Candidate) -> RunnerUp:
        assert service.promise is not None
        promise = service.promise
        low = self.search.bound(service, candidate, 1.0)
        price = self.search.cost(service, candidate)
        ours = self.predicted.verdicts[service.name].value_ms
        scored = self.search.scores.of(service, candidate) if low.ms <= promise.latency_ms else candidate
        inaccurate = self.search.accepted(service, scored) if scored.score is not None else ""
        because = self.search.refused[service.name].get(candidate.variant, "") or inaccurate
        with_it = {**self.chosen, service.name: candidate}
        q = f"p{promise.percentile:g}"
        if low.overload or low.ms > 4 * promise.latency_ms:
            text = low.overload or f"takes at least {_ms(low.ms)}, over the promised {promise.latency_ms:g} ms"
            value, interval, judged_by, gain = low.ms, (low.ms, low.ms), "bound", None
            whys = [because, text]
        else:
            told = self.judge.say(with_it, 1.0, PREDICT, 3, self.judge.until_s(2.0), interval=True)
            value, interval = told.verdicts[service.name].value_ms, told.verdicts[service.name].interval_ms
            judged_by, gain = "twin", ours - value
            whys = [because]
            padded = self.judge.search(with_it, self.search.scale, service.name).verdicts[service.name].value_ms
            others = [name for name, kept in self.kept.items() if kept and name != service.name]
            broken = [name for name in others if not self.judge.keeps(told, [name])]
            if not told.verdicts[service.name].requests:
                whys.append("too few requests")
            elif value > promise.latency_ms:
                whys.append(f"misses {promise.latency_ms:g} ms: {q} {_ms(value)}")
            elif padded > promise.latency_ms:
                head = f"{self.search.scale - 1:.0%}".replace("%", " %")
                whys.append(f"misses {promise.latency_ms:g} ms with {head} headroom: {q} {_ms(padded)}")
            elif broken:
                whys.append(f"keeps its own promise and breaks that of {', '.join(broken)}")
            elif not because:
                own = self.search.cost(service, self.chosen[service.name])
                pinned = service.pin is not None or price <= own
                whys.append("keeps it too; another way is pinned" if pinned and service.pin else
                            f"keeps it too ({q} {_ms(value)}), at cost {price:.3g} against {own:.3g}")  # fmt: skip
        return RunnerUp(scored, value, interval, judged_by, price, "; ".join(filter(None, whys)), gain)


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1e6 else "unanswered requests"


def _gain(ms: float) -> str:
    return f"{abs(ms):.3g} ms {'less' if ms < 0 else 'more'} than"
