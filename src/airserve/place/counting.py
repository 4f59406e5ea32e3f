"""How many devices a Service can have until its promise breaks, the others as they are; and what binds there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airserve.contract import Span
from airserve.network.mac import MacError
from airserve.network.topology import Network
from airserve.network.uplink import askers
from airserve.place.description import Service
from airserve.place.judging import COUNT, Judge, Said
from airserve.place.plan import Candidate

MOST = 10_000  # devices that a description may have
STEP = 0.03  # of the number of devices: how finely the break is found
FULL = 0.8  # of a slice's PRBs: beyond it they bind
RUNS = 2
ENOUGH = 12_000  # requests of a run: a busy cell is run for less long
SHORTEST_S = (3.0, 8.0)


def step(devices: int) -> int:
    """How finely the break is found, in devices.

    >>> step(10), step(400)
    (1, 12)
    """
    return max(1, round(STEP * devices))


def count_said(judge: Judge, chosen: Mapping[str, Candidate], service: Service, devices: int) -> Said:
    """What the twin says when the Service has so many devices, without headroom."""
    assert service.promise is not None
    asked_hz = devices * service.rate_hz
    need_s = 2 * service.promise.plain().least / asked_hz / RUNS
    until_s = float(np.clip(need_s, np.clip(ENOUGH / asked_hz, *SHORTEST_S), 60.0))
    return judge.say(chosen, 1.0, COUNT, RUNS, until_s, devices={service.name: devices}, interval=True)


def most_devices(
    judge: Judge, chosen: Mapping[str, Candidate], service: Service
) -> tuple[int, str, tuple[tuple[int, float, float, float], ...]]:
    """The number until the promise breaks (0: not even one keeps it), what binds there, and the points that were run.

    Found by doubling and bisection to `step`; each point is devices, percentile, and its interval in ms. Of several
    cells one may have no scheduling request left while others have: that number is one too many, too.
    """
    if not chosen[service.name].site:
        alone = count_said(judge, chosen, service, service.devices)
        kept = judge.keeps(alone, [service.name])
        points = (_point(service, service.devices, alone),)
        if kept:
            return MOST, "nothing: every device answers alone", points
        return 0, f"compute of {chosen[service.name].device_site}, whatever the number", points
    said: dict[int, Said] = {}

    def keeps(devices: int) -> bool:
        try:
            said[devices] = count_said(judge, chosen, service, devices)
        except MacError:
            if devices <= service.devices:
                raise
            return False
        return judge.keeps(said[devices], [service.name])

    most, limit = room(judge.factory.network, judge.factory.services, service)
    low, high = 0, service.devices
    while keeps(high):
        low = high
        if high == most:
            return most, limit, _points(service, said)
        high = min(2 * high, most)
    while high - low > step(high):
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    if high not in said:
        return low, limit, _points(service, said)
    return low, binding(judge.factory.network, service, said[min(said)], said[high]), _points(service, said)


def room(network: Network, services: Sequence[Service], service: Service) -> tuple[int, str]:
    """Devices that a Service can have before any latency is asked about, and what says so."""
    cell = network.cell
    if cell.grant == "configured":
        return MOST, f"nothing up to {MOST} devices"
    others = sum(one.devices for one in services if one.name != service.name)
    cells = len(network.cell_names)
    there = len(network.station_names) * sum(askers(one) for one in network.carriers)
    if (left := there - others) > MOST:
        return MOST, f"nothing up to {MOST} devices"
    of = f"each of {cells} cells" if cells > 1 else f"cell {cell.name}"
    alike = len({askers(one) for one in network.carriers}) == 1
    room_for = f"{there // cells} for all its devices" if alike else f"{there} in all for all devices"
    return left, f"scheduling requests on the PUCCH of {of}: there are {room_for}"


def binding(network: Network, service: Service, calm: Said, broken: Said) -> str:
    """What binds: the part of a slow request that has grown most from a calm run to one whose promise is broken."""
    at = network.slice_index(service.slice)
    one = network.slices[at]
    full = {
        "up": broken.shares_up[at] >= FULL * one.max / 100 or sum(broken.shares_up) >= FULL,
        "down": broken.shares_down[at] >= FULL * one.max / 100 or sum(broken.shares_down) >= FULL,
    }
    before = dict(calm.verdicts[service.name].slow)
    after = broken.verdicts[service.name].slow
    if not after:
        return f"PRBs of slice {service.slice}: requests stay unanswered"
    span = max(after, key=lambda row: row[1] - before.get(row[0], 0.0))[0]
    return named(network, service, span, full)


def named(network: Network, service: Service, span: Span, full: Mapping[str, bool] | None = None) -> str:
    """A part of a request's latency as a limit that a user can act on."""
    if span.kind in ("queue", "compute"):
        if network.site(span.site).kind == "device":
            return f"compute of {span.site}"
        cores = network.site(span.site).cores
        return f"compute at {span.site} ({cores} core{'s' * (cores > 1)})"
    if span.kind == "transit":
        return f"transit to {span.site}"
    way = "uplink" if span.direction == "up" else "downlink"
    if (full or {}).get(span.direction):
        return f"{way} PRBs of slice {service.slice}"
    if span.kind == "wait" and span.direction == "up":
        return f"scheduling requests and grants of slice {service.slice}"
    return f"{way} of slice {service.slice}"


def _points(service: Service, said: Mapping[int, Said]) -> tuple[tuple[int, float, float, float], ...]:
    return tuple(_point(service, devices, said[devices]) for devices in sorted(said))


def _point(service: Service, devices: int, said: Said) -> tuple[int, float, float, float]:
    verdict = said.verdicts[service.name]
    return devices, verdict.value_ms, *verdict.interval_ms
