"""How many devices a Service can have until its promise breaks, the others as they are; and what binds there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from airserve import arrivals
from airserve.arrivals import ArrivalError
from airserve.contract import Span
from airserve.network.mac import MacError
from airserve.network.topology import Network
from airserve.network.traffic import Flow, TrafficError, device_of
from airserve.network.uplink import askers, heard
from airserve.place.bounds import asked_hz
from airserve.place.description import Service
from airserve.place.judging import COUNT, Judge, Said, flows_of
from airserve.place.plan import Candidate

MOST = 10_000  # devices that a description may have
STEP = 0.03  # of the number of devices: how finely the break is found
FULL = 0.8  # of a slice's PRBs: beyond it they bind
RUNS = 2
ENOUGH = 12_000  # requests of a run: a busy cell is run for less long
SHORTEST_S, LONGEST_S = (3.0, 8.0), 60.0


def step(devices: int) -> int:
    """How finely the break is found, in devices.

    >>> step(10), step(400)
    (1, 12)
    """
    return max(1, round(STEP * devices))


def count_said(judge: Judge, chosen: Mapping[str, Candidate], service: Service, devices: int) -> Said:
    """What the twin says when the Service has so many devices, without headroom."""
    assert service.promise is not None
    there, asked = {service.name: devices}, devices * service.rate_hz
    need_s = 2 * service.promise.plain().least / asked / RUNS
    until_s = float(np.clip(need_s, np.clip(ENOUGH / asked, *SHORTEST_S), judge.longest_s(LONGEST_S, there)))
    return judge.say(chosen, 1.0, COUNT, RUNS, until_s, devices=there, interval=True)


def most_devices(
    judge: Judge, chosen: Mapping[str, Candidate], service: Service
) -> tuple[int, str, tuple[tuple[int, float, float, float], ...]]:
    """The number until the promise breaks (0: not even one keeps it), what binds there, and the points that were run.

    Found by doubling and bisection to `step`; each point is devices, percentile, and its interval in ms. Of several
    cells one may have no scheduling request left while others have: that number is one too many, too. Where a trace
    says who asks and when, other numbers of devices ask no differently: then it is the number of now, or 0.
    """
    if arrivals.fixed(service.arrival):
        now = count_said(judge, chosen, service, service.devices)
        kept = service.devices if judge.keeps(now, [service.name]) else 0
        return kept, "the trace fixes its requests", (_point(service, service.devices, now),)
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
        except (MacError, ArrivalError, TrafficError):  # no room for so many in a cell, or in a run
            if devices <= service.devices:
                raise
            return False
        return judge.keeps(said[devices], [service.name])

    most, limit = room(judge, service)
    low, high = 0, service.devices
    while keeps(high):
        low = high
        if high >= most:
            return high, limit, _points(service, said)
        high = min(2 * high, most)
    while high - low > step(high):
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    if high not in said:
        return low, limit, _points(service, said)
    return low, binding(judge, chosen, service, said[min(said)], said[high], high), _points(service, said)


def requesters(services: Sequence[Service]) -> int:
    """Scheduling requests that the devices of these Services hold on the PUCCH.

    A device asks for each of its slices apart, and once for all its services in a slice.
    """
    flows = [Flow(one.name, one.slice, one.devices, one.rate_hz, devices_of=one.devices_of or "") for one in services]
    slices = (flow.slice for flow in flows for _ in range(flow.devices))
    return len(set(zip(device_of(flows), slices, strict=True)))


def room(judge: Judge, service: Service) -> tuple[int, str]:
    """Devices that a Service can have before any latency is asked about, and what says so."""
    network = judge.factory.network
    cell = network.cell
    if cell.grant == "configured":
        return MOST, f"nothing up to {MOST} devices"

    def asking(devices: int) -> int:
        changed = service.model_copy(update={"devices": devices})
        return requesters([changed if one.name == service.name else one for one in judge.factory.services])

    cells = len(network.cell_names)
    there = heard(network)
    left = bisect_right(range(1, MOST + 1), there, key=asking)
    if left == MOST:
        return MOST, f"nothing up to {MOST} devices"
    of = f"each of {cells} cells" if cells > 1 else f"cell {cell.name}"
    alike = len({askers(one) for one in network.carriers}) == 1
    room_for = f"{there // cells} for all its devices" if alike else f"{there} in all for all devices"
    return left, f"scheduling requests on the PUCCH of {of}: there are {room_for}"


def binding(
    judge: Judge, chosen: Mapping[str, Candidate], service: Service, calm: Said, broken: Said, devices: int
) -> str:
    """What binds: the part of a slow request that has grown most from a calm run to one whose promise is broken."""
    before = dict(calm.verdicts[service.name].slow)
    after = broken.verdicts[service.name].slow
    if not broken.verdicts[service.name].requests:
        return "too few requests"
    if not after:
        cause = exhausted(judge, chosen, service, broken, devices={service.name: devices})
        return f"{cause}: requests stay unanswered" if cause else "requests stay unanswered"
    span = max(after, key=lambda row: row[1] - before.get(row[0], 0.0))[0]
    return named(judge.factory.network, service, span, full(judge.factory.network, service, broken))


def full(network: Network, service: Service, said: Said) -> dict[str, bool]:
    """Whether the PRBs of a Service's slice are used up, or those of all together, by direction."""
    at = network.slice_index(service.slice)
    most = FULL * network.slices[at].max / 100
    shares = {"up": said.shares_up, "down": said.shares_down}
    return {way: share[at] >= most or sum(share) >= FULL for way, share in shares.items()}


def exhausted(
    judge: Judge,
    chosen: Mapping[str, Candidate],
    service: Service,
    said: Said,
    scale: float = 1.0,
    devices: Mapping[str, int] | None = None,
) -> str:
    """What a Service's requests need more of than there is, all services together; "" where that is nothing."""
    network, busy = judge.factory.network, 0.0
    work = {flow.name: flow for flow in flows_of(judge.factory, chosen, scale, devices)}
    own = work[service.name]
    for one in judge.factory.services:
        flow = work[one.name]
        asked = asked_hz(one.model_copy(update={"devices": flow.devices}), LONGEST_S)
        if one.name == service.name and asked / flow.devices * float(np.mean(flow.device_seconds)) > 1:
            return f"compute of {own.device_site}"
        busy += asked * float(np.mean(flow.site_seconds)) * (flow.site == own.site)
    if own.site and busy > (cores := network.site(own.site).cores):
        return f"compute at {own.site}, of whose {cores} core{'s' * (cores > 1)} {busy:.2g} would be needed"
    there = full(network, service, said)
    ways = [f"{way}link" for way, used_up in there.items() if used_up]
    return f"{' and '.join(ways)} PRBs of slice {service.slice}" if ways else ""


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
