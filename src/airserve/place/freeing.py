"""Where nothing keeps a promise: which limit binds, and what would free it, each tried in the twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil

from airserve.network.mac import MacError
from airserve.network.topology import Network, Site
from airserve.place.counting import exhausted, named
from airserve.place.description import Service
from airserve.place.judging import SEARCH, Judge
from airserve.place.plan import Candidate

SHOWN = 3  # ways out that are told, the promise itself aside
SR_PERIODS_MS = (10.0, 5.0, 2.5, 1.25)
CORES = (2, 4, 8, 16, 32, 64)


def limit(judge: Judge, chosen: Mapping[str, Candidate], service: Service, scale: float) -> str:
    """One sentence: the nearest way, the part of it that binds, and numbers with which the promise would be kept."""
    assert service.promise is not None
    promise, way = service.promise, _way(chosen, service)
    until_s = judge.until_s(1.0)
    said = judge.say(chosen, scale, SEARCH, 3, until_s)
    verdict = said.verdicts[service.name]
    q = f"p{promise.percentile:g}"
    if not verdict.requests:
        return (
            f"{service.name}: too few requests: none was sent in {until_s:.0f} s of the twin, so nothing is known of "
            f"{q} within {promise.latency_ms:g} ms; ask more often, or with more devices."
        )
    if verdict.value_ms <= promise.latency_ms:
        return (
            f"{service.name}: {way} keeps {promise.latency_ms:g} ms and is not as accurate as promised, or "
            "another service breaks beside it; unpin it, or promise less."
        )
    network = judge.factory.network
    head = f"with {100 * (scale - 1):.0f} % headroom"
    outs = _ways_out(judge, chosen, service, scale)[:SHOWN]
    if verdict.value_ms == float("inf"):
        cause = exhausted(judge, chosen, service, said, scale)
        return (
            f"{service.name}: nothing keeps {q} within {promise.latency_ms:g} ms; {way} comes nearest, and "
            f"{head} requests stay unanswered{f' for want of {cause}' if cause else ''}; "
            f"{f'it would hold with {_either(outs)}' if outs else 'ask less often, or with fewer devices'}."
        )
    span, ms = max(verdict.slow, key=lambda row: row[1])
    ways = _either([f"a promise of {ceil(verdict.value_ms * 1.02)} ms", *outs])
    return (
        f"{service.name}: nothing keeps {q} within {promise.latency_ms:g} ms; {way} comes nearest with "
        f"{verdict.value_ms:.3g} ms {head}, {ms:.3g} ms of it {named(network, service, span)}; "
        f"it would hold with {ways}."
    )


def _ways_out(judge: Judge, chosen: Mapping[str, Candidate], service: Service, scale: float) -> list[str]:
    """Changes of the network with which the promise is kept, each alone, the least that does it; tried in the twin."""
    candidate, network = chosen.get(service.name), judge.factory.network
    until_s = judge.until_s(1.0)

    def holds(changed: Network | None, one: Candidate | None = candidate) -> bool:
        try:
            ways = chosen if one is None else {**chosen, service.name: one}
            said = judge.say(ways, scale, SEARCH, 1, until_s, network=changed)
        except MacError:  # a cell has no scheduling request for one of its devices in so short a period
            return False
        return judge.keeps(said, [service.name])

    found = []
    if candidate is not None and candidate.device_functions:
        found += _faster(candidate, network.site(candidate.device_site), lambda one: holds(None, one))
        if not candidate.site:
            return found
    at_site = service.site if candidate is None else candidate.site
    assert at_site is not None
    site = network.site(at_site)
    if site.delay_ms > 0:
        near = _least(0.0, site.delay_ms, lambda cut: holds(_site(network, site.name, delay_ms=site.delay_ms - cut)))
        if near is not None:
            found.append(f"{site.name} at most {max(0.0, site.delay_ms - near):.3g} ms away")
    at = network.slice_index(service.slice)
    others = sum(one.min for i, one in enumerate(network.slices) if i != at)
    own = network.slices[at].min
    room = 100.0 - others
    if room > own:
        share = _least(own, room, lambda x: holds(_slice(network, service.slice, x)))
        if share is not None:
            found.append(f"slice {service.slice} with a min of {min(room, ceil(share)):g} %")
    for period_ms in SR_PERIODS_MS:
        if period_ms < network.cell.sr_period_ms and holds(_cell(network, sr_period_ms=period_ms)):
            found.append(f"a scheduling-request period of {period_ms:g} ms")
            break
    for cores in CORES:
        if cores > site.cores and holds(_site(network, site.name, cores=cores)):
            found.append(f"{cores} cores at {site.name}")
            break
    return found


def _faster(candidate: Candidate, device: Site, holds: Callable[[Candidate], bool]) -> list[str]:
    """The least speed of the device with which the promise is kept, in words; none where no speed does."""
    if device.speed >= 1:
        return []

    def of_speed(speed: float) -> Candidate:
        return replace(candidate, device_seconds=candidate.device_seconds * device.speed / speed)

    speed = _least(device.speed, 1.0, lambda x: holds(of_speed(x)))
    return [] if speed is None else [f"a {device.name} of speed {_up(speed)}"]


def _way(chosen: Mapping[str, Candidate], service: Service) -> str:
    return chosen[service.name].label if service.name in chosen else f"the work it states, on {service.site},"


def _either(ways: Sequence[str]) -> str:
    """
    >>> _either(["a"]), _either(["a", "b", "c"])
    ('a', 'a, b or c')
    """
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"


def _least(low: float, high: float, holds: Callable[[float], bool]) -> float | None:
    """The least value in (low, high] that holds, to a 32nd of the range; None where not even `high` does."""
    if not holds(high):
        return None
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _up(value: float) -> str:
    """Two digits, rounded up, so that what is told still holds.

    >>> _up(0.0123)
    '0.013'
    """
    digits = f"{value:.1e}"
    rounded = float(digits)
    return f"{rounded if rounded >= value else rounded + 10 ** (int(digits.split('e')[1]) - 1):.2g}"


def _site(network: Network, name: str, **changes: float) -> Network:
    return _with(network, sites=[s.model_copy(update=changes) if s.name == name else s for s in network.sites])


def _slice(network: Network, name: str, share: float) -> Network:
    changes = {"min": share, "max": max(share, network.slices[network.slice_index(name)].max)}
    return _with(network, slices=[s.model_copy(update=changes) if s.name == name else s for s in network.slices])


def _cell(network: Network, **changes: float) -> Network:
    return _with(network, cells=[cell.model_copy(update=changes) for cell in network.cells])


def _with(network: Network, **parts: Sequence[object]) -> Network:
    return network.model_copy(update={key: tuple(value) for key, value in parts.items()})
