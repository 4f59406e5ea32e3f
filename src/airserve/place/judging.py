"""What the twin says of candidates: percentiles of whole requests, with the other services' load and all queues there.

Channel and arrival seeds come in streams: searching, predicting and counting devices never share one, and none is
that of a measured run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from numpy.random import Generator, default_rng

from airserve import arrivals
from airserve.contract import Readings, Span, percentile
from airserve.errors import UserError
from airserve.model import Array
from airserve.network import twin
from airserve.network.outcome import Outcome
from airserve.network.topology import Network
from airserve.network.traffic import Flow
from airserve.place.description import Factory, Service
from airserve.place.plan import Candidate, Choice

SEARCH, PREDICT, COUNT = 11, 12, 13  # streams of seeds
SHORTEST_S, LONGEST_S = 8.0, 120.0  # of a run
RARE = 1000  # requests of all services in a run, until which it may be longer: the twin skips quiet slots
RARE_S = 10_000.0
CLEAR = 1.25  # a first run this far to either side of the promise settles it
BLOCK_S = 1.0
BEGUN_S = 3.0  # of a trace that a run shows at least
DRAWS = 400


@dataclass(frozen=True)
class Verdict:
    """A Service in the twin: the promise's percentile, its interval, and where the slow requests spent their time."""

    value_ms: float
    interval_ms: tuple[float, float]
    requests: int
    slow: tuple[tuple[Span, float], ...]  # mean ms of the requests ranked about the percentile


@dataclass(frozen=True)
class Said:
    """What a run of all services said: a Verdict for each with a promise, and the shares of the PRBs per slice."""

    verdicts: Mapping[str, Verdict]
    shares_up: tuple[float, ...]
    shares_down: tuple[float, ...]


def flows(factory: Factory, choices: Sequence[Choice]) -> list[Flow]:
    """The work of all services, in the file's order: of their chosen candidates, or of the sizes that they state."""
    return flows_of(factory, {choice.service: choice.chosen for choice in choices})


def flows_of(
    factory: Factory,
    chosen: Mapping[str, Candidate],
    scale: float = 1.0,
    devices: Mapping[str, int] | None = None,
) -> list[Flow]:
    """The same for candidates; `scale` multiplies bytes and seconds, `devices` replaces a service's own number.

    Raises `UserError` for a service with a model and no candidate.
    """
    found = []
    for service in factory.services:
        number = (devices or {}).get(service.name, service.devices)
        if service.model is not None:
            if service.name not in chosen:
                raise UserError(f"service {service.name} has no candidate; plan it first: airserve plan FILE.")
            found.append(_flow(service, chosen[service.name], number, scale))
        else:
            found.append(_flow(service, _stated(service, factory.network), number, scale))
    return found


class Work(NamedTuple):
    """What a request of a Service without a model asks of the network and of its site, as a Candidate says it."""

    site: str
    bytes_up: Array
    bytes_down: Array
    site_seconds: Array
    device_site: str = ""
    device_seconds: Array = np.zeros(1)


def _flow(service: Service, work: Candidate | Work, devices: int, scale: float) -> Flow:
    return Flow(
        name=service.name,
        slice=service.slice,
        devices=devices,
        rate_hz=service.rate_hz,
        arrival=service.arrival,
        transport=service.transport,
        ue=service.ue,
        carrier=service.carrier,
        devices_of=service.devices_of or "",
        channel=service.channel,
        device_site=work.device_site,
        device_seconds=scale * work.device_seconds,
        site=work.site,
        bytes_up=np.rint(scale * work.bytes_up),
        bytes_down=np.rint(scale * work.bytes_down),
        site_seconds=scale * work.site_seconds,
        own_bytes=service.model is not None,  # as the driver sends them
    )


def _stated(service: Service, network: Network) -> Work:
    """The sizes and the compute time that a Service states."""
    assert service.site is not None
    seconds = (service.compute_ms or 0) / 1e3 / network.site(service.site).speed
    up, down = float(service.bytes_up or 1), float(service.bytes_down or 1)
    return Work(service.site, np.array([up]), np.array([down]), np.array([seconds]))


@final
class Judge:
    """Runs of the twin for a description; the same question is answered once."""

    def __init__(self, factory: Factory, seed: int, ran: Callable[[], None] = lambda: None) -> None:
        self.factory = factory
        self.promised = [service for service in factory.services if service.promise is not None]
        self._promised_ms = {one.name: one.promise.latency_ms for one in factory.services if one.promise is not None}
        self.runs = 0
        self._seed = seed
        self._ran = ran
        self._known: dict[object, Outcome] = {}
        begins_s = max(arrivals.begins_s(service.arrival, service.devices) for service in factory.services)
        self._least_s = min(begins_s + BEGUN_S, LONGEST_S)  # of a run: a trace that begins late is not to be left out

    def until_s(self, requests: float) -> float:
        """Seconds of a run in which every promised service sends so many times the requests that it needs."""
        need = [
            requests * service.promise.plain().least / (service.devices * service.rate_hz)
            for service in self.promised
            if service.promise is not None
        ]
        least_s = max(SHORTEST_S, self._least_s)
        return float(np.clip(max(need, default=10.0), least_s, max(least_s, self.longest_s(LONGEST_S))))

    def longest_s(self, usual_s: float, devices: Mapping[str, int] | None = None) -> float:
        """Seconds of a run at most: the usual, or more where all services together ask for next to nothing."""
        asked_hz = sum((devices or {}).get(one.name, one.devices) * one.rate_hz for one in self.factory.services)
        return float(np.clip(RARE / asked_hz, usual_s, RARE_S))

    def keeps(self, said: Said, names: Sequence[str]) -> bool:
        """Whether these services keep their latency."""
        return all(said.verdicts[name].value_ms <= self._promised_ms[name] for name in names)

    def search(self, chosen: Mapping[str, Candidate], scale: float, *watched: str) -> Said:
        """A verdict that is quick where it is clear: more runs only where one of `watched` comes near its promise."""
        until_s = self.until_s(1.0)
        first = self.say(chosen, scale, SEARCH, 1, until_s)
        near = any(1 / CLEAR < first.verdicts[name].value_ms / self._promised_ms[name] < CLEAR for name in watched)
        return self.say(chosen, scale, SEARCH, 3, until_s) if near else first

    def say(
        self,
        chosen: Mapping[str, Candidate],
        scale: float,
        stream: int,
        runs: int,
        until_s: float,
        devices: Mapping[str, int] | None = None,
        network: Network | None = None,
        interval: bool = False,
    ) -> Said:
        """What so many runs say together; each has a channel, arrivals and draws of its own.

        Raises `ArrivalError` for a trace that begins later than the longest run ends.
        """
        until_s = max(until_s, self._least_s)
        outcomes = [self._run(chosen, scale, stream, k, until_s, devices, network) for k in range(runs)]
        rng = default_rng([self._seed, stream])
        verdicts = {
            service.name: verdict(
                [o.readings[service.name] for o in outcomes], service.promise.percentile, rng if interval else None
            )
            for service in self.promised
            if service.promise is not None
        }
        shares = [
            tuple(float(np.mean([o.slices[i][way]["share_used"] for o in outcomes])) for i in range(self._slices))
            for way in ("up", "down")
        ]
        return Said(verdicts, shares[0], shares[1])

    @property
    def _slices(self) -> int:
        return len(self.factory.network.slices)

    def _run(
        self,
        chosen: Mapping[str, Candidate],
        scale: float,
        stream: int,
        k: int,
        until_s: float,
        devices: Mapping[str, int] | None,
        network: Network | None,
    ) -> Outcome:
        work = flows_of(self.factory, chosen, scale, devices)
        network = network or self.factory.network
        key = (network, stream, k, until_s, tuple(_fingerprint(flow) for flow in work))
        if key not in self._known:
            seed = int(np.random.SeedSequence([self._seed, stream, k]).generate_state(1)[0] >> 1)
            self._known[key] = twin.run(network, work, until_s=until_s, seed=seed)
            self.runs += 1
            self._ran()
        return self._known[key]


def verdict(runs: Sequence[Readings], q: float, rng: Generator | None) -> Verdict:
    """The q-th percentile of runs together, and with `rng` the interval in which another run's would lie (95 %).

    The interval is of one run: a run is drawn, and of it blocks of time (requests of a moment hang together), so
    that the difference from channel to channel is in it.
    """
    latencies = [run.latency_ms for run in runs]
    pooled = np.concatenate(latencies)
    if not len(pooled):
        return Verdict(float("inf"), (0.0, float("inf")), 0, ())
    value_ms = percentile(pooled, q)
    interval_ms = (value_ms, value_ms)
    if rng is not None:
        groups = [_blocks(run, latency) for run, latency in zip(runs, latencies, strict=True) if len(latency)]
        draws = np.empty(DRAWS)
        for i in range(DRAWS):
            blocks = groups[int(rng.integers(len(groups)))]
            again = np.concatenate([blocks[j] for j in rng.integers(0, len(blocks), len(blocks))])
            at = int(np.ceil((len(again) - 1) * q / 100))
            draws[i] = np.partition(again, at)[at]
        interval_ms = (percentile(draws, 2.5), percentile(draws, 97.5))
    return Verdict(value_ms, interval_ms, len(pooled), _slow(runs, q))


def _blocks(run: Readings, latency_ms: Array) -> list[Array]:
    block = (run.sent_s // BLOCK_S).astype(int)
    order = np.argsort(block, kind="stable")
    return list(np.split(latency_ms[order], np.flatnonzero(np.diff(block[order])) + 1))


def _slow(runs: Sequence[Readings], q: float) -> tuple[tuple[Span, float], ...]:
    """Mean spans of the requests whose rank is about q: percentiles of spans do not add, whole requests do."""
    spans = runs[0].spans
    ms = np.concatenate([run.ms for run in runs])
    ms = ms[~np.isnan(ms).any(axis=1)]
    if not len(ms):
        return ()
    order = np.argsort(ms.sum(axis=1), kind="stable")
    half = (100 - q) / 2
    first = max(0, int(len(order) * (q - half) / 100))
    rows = order[first : max(first + 1, int(len(order) * (q + half) / 100))]
    return tuple(zip(spans, map(float, ms[rows].mean(axis=0)), strict=True))


def _fingerprint(flow: Flow) -> tuple[object, ...]:
    arrays = (flow.device_seconds, flow.site_seconds, flow.bytes_up, flow.bytes_down)
    return (
        flow.name,
        flow.slice,
        flow.devices,
        flow.rate_hz,
        flow.arrival,
        flow.transport,
        flow.devices_of,
        flow.channel,
        flow.device_site,
        flow.site,
        *(np.asarray(array).tobytes() for array in arrays),
    )
