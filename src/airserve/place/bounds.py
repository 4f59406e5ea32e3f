"""What no run of the twin can beat: closed-form lower bounds of latency and load, from the carrier's peak rate.

TDD pattern and transport blocks: TS 38.213 11.1, TS 38.214 5.1.3.2. Nothing here draws or simulates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from airserve import arrivals
from airserve.model import Array
from airserve.network import frame, radio
from airserve.network.cell import Cell
from airserve.network.link import EFFICIENCY, QM, RATE, Direction, tbs_bits
from airserve.network.pairing import MOST
from airserve.network.topology import Network
from airserve.place.description import Service
from airserve.place.plan import Candidate

MOST_ELEMENTS = 156  # resource elements of a PRB that a transport block may use, TS 38.214 5.1.3.2
BACKLOG = 0.9  # of the fluid backlog is sure in a run of random arrivals


@dataclass(frozen=True)
class Bound:
    """The least latency at the percentile, and the resource that more is asked of than there is, if any."""

    ms: float
    overload: str = ""


@lru_cache(maxsize=64)
def peak_bits(cell: Cell, direction: Direction) -> int:
    """Bits of the largest transport block that one slot can carry to or from one device.

    >>> peak_bits(Cell(name="hall"), "down") > peak_bits(Cell(name="hall"), "up") > 500_000
    True
    """
    trace = radio.load(cell)
    layers = (trace.snr_down_db if direction == "down" else trace.snr_up_db).shape[-1]
    return int(tbs_bits(cell.prbs * MOST_ELEMENTS, int(QM[-1]), float(RATE[-1]), layers))


@lru_cache(maxsize=64)
def most_up_bps(cell: Cell) -> float:
    """Bits a second that all devices together can send: the peak of one, or where several share PRBs of all layers.

    >>> [round(most_up_bps(Cell(name="hall", mimo=mimo)) / 1e6) for mimo in ("su", "mu")]
    [256, 1023]
    """
    block = peak_bits(cell, "up")
    if cell.mimo == "mu":
        block = max(block, MOST * tbs_bits(cell.prbs * MOST_ELEMENTS, int(QM[-1]), float(RATE[-1]), 1))
    return block * float(np.mean(frame.carries(cell, "up"))) / (cell.slot_ms / 1e3)


@lru_cache(maxsize=64)
def mean_bps(cell: Cell) -> tuple[float, float]:
    """Bits a second, up and down, that the whole carrier carries at the trace's mean link adaptation."""
    trace = radio.load(cell)
    rates = []
    for direction, way in (("up", 1), ("down", 0)):
        share = min(1.0, 20 / cell.prbs) if direction == "up" else 1.0  # of a request of some kB
        mcs, layers, _ = radio.rates(trace, direction, target_bler=cell.target_bler, share=share)  # type: ignore[arg-type]
        elements = frame.pattern(cell)["elements"][:, way].mean()
        rates.append(float((EFFICIENCY[mcs] * layers).mean()) * cell.prbs * float(elements) / (cell.slot_ms / 1e3))
    return rates[0], rates[1]


@lru_cache(maxsize=4096)
def slots_for(carries: tuple[bool, ...], blocks: int) -> int:
    """Slots from the first to the last of so many slots of one direction, both included, at best.

    `carries` says of each slot of the pattern whether it has that direction.

    >>> up, down = (frame.carries(Cell(name="hall"), way) for way in ("up", "down"))
    >>> slots_for(up, 1), slots_for(up, 3), slots_for(down, 5)
    (1, 11, 6)
    """
    at = [i for i, there in enumerate(carries) if there]
    best = None
    for first in range(len(at)):
        rounds, rest = divmod(first + blocks - 1, len(at))
        took = rounds * len(carries) + at[rest] - at[first] + 1
        best = took if best is None else min(best, took)
    return best or 0


def air_ms(cell: Cell, direction: Direction, nbytes: float) -> float:
    """The least time on the air of a message alone in the cell: the slots that it fills at the peak rate."""
    blocks = max(1, ceil(nbytes * 8 / peak_bits(cell, direction)))
    return slots_for(frame.carries(cell, direction), blocks) * cell.slot_ms


def asked_hz(service: Service, until_s: float) -> float:
    """Requests a second of all devices of a Service together, in a run: at its rate, or of its trace of arrivals."""
    if not arrivals.fixed(service.arrival):
        return service.devices * service.rate_hz
    if arrivals.begins_s(service.arrival, service.devices) >= until_s:
        return 0.0
    there = arrivals.draw(service.arrival, service.devices, service.rate_hz, until_s, np.random.default_rng())
    return len(there.at_s) / until_s


def bound(
    candidate: Candidate,
    service: Service,
    network: Network,
    until_s: float,
    scale: float = 1.0,
    asked: float | None = None,
) -> Bound:
    """The least latency at the promise's percentile of a run of `until_s` seconds; `scale` multiplies the demand.

    The percentile of a sum is at least the percentile of one part and the minima of the others. Where more is asked
    of a device, a site or the air than there is, a backlog grows all through the run. A trace may ask for all at any
    time: then so many as are in the percentile are answered no sooner than all there is can answer them. `asked` is
    `asked_hz` of the run, where it is known already.
    """
    assert service.promise is not None
    promise = service.promise
    parts = [_spread(candidate.device_seconds, promise.percentile, scale * 1e3)]
    up = down = 0.0
    if candidate.site:
        parts.append(_spread(candidate.site_seconds, promise.percentile, scale * 1e3))
        up, down = scale * float(candidate.bytes_up.min()), scale * float(candidate.bytes_down.min())
        over = min(air_ms(cell, "up", up) + air_ms(cell, "down", down) for cell in set(network.carriers))
        sent = over + 2 * network.site(candidate.site).delay_ms
        parts.append((sent, sent))
    least = sum(low for low, _ in parts)
    ms = max(least - low + high for low, high in parts)
    worst, overload = 1.0, ""
    for load, what in loads(candidate, service, network, scale, asked_hz(service, until_s) if asked is None else asked):
        if load > worst:
            worst, overload = load, what
    within = BACKLOG * max(0.0, promise.percentile / 100 - 0.02)
    grown = within * worst - 1 if arrivals.fixed(service.arrival) else within * (worst - 1)
    backlog_ms = max(0.0, grown) * until_s * 1e3
    return Bound(max(ms, backlog_ms), overload if backlog_ms > promise.latency_ms else "")


def loads(
    candidate: Candidate, service: Service, network: Network, scale: float, asked: float
) -> list[tuple[float, str]]:
    """What a candidate asks of each resource, as a share of what there is at most, and a sentence's subject for it.

    `asked` is in requests a second, of all devices together.
    """
    computes = asked / service.devices * scale * float(np.mean(candidate.device_seconds))
    found = [(computes, f"{candidate.device_site} computes {computes:.2g} s a second")]
    if candidate.site:
        site = network.site(candidate.site)
        busy = asked * scale * float(np.mean(candidate.site_seconds))
        found.append((busy / site.cores, f"{site.name} would need {busy:.2g} of its {site.cores} cores"))
        most = network.slices[network.slice_index(service.slice)].max / 100
        there_bps = len(network.station_names) * most * sum(most_up_bps(cell) for cell in network.carriers)
        asked_bps = asked * scale * 8 * float(np.mean(candidate.bytes_up))
        text = f"slice {service.slice} carries at most {there_bps / 1e6:.0f} Mbit/s up, {asked_bps / 1e6:.0f} are asked"
        found.append((asked_bps / there_bps, text))
    return found


def dominates(a: Candidate, b: Candidate) -> bool:
    """Whether `a` asks no more than `b` of the same sites, in every byte and second, whatever is drawn.

    Never for a cut as int8 whose score is unknown: it may turn out to be refused.
    """
    if a.device_site != b.device_site or (a.site and a.site != b.site) or (a.encoding == "int8" and a.score is None):
        return False
    pairs = [(a.device_seconds, b.device_seconds)]
    if a.site:
        pairs += [(a.site_seconds, b.site_seconds), (a.bytes_up, b.bytes_up), (a.bytes_down, b.bytes_down)]
    return all(_below(x, y) for x, y in pairs)


def _below(x: Array, y: Array) -> bool:
    """Whether x is at most y in every quantile."""
    grid = np.linspace(0, 1, 21)
    return bool((np.quantile(x, grid) <= np.quantile(y, grid)).all() and x.mean() <= y.mean())


def _spread(values: Array, percentile: float, scale: float) -> tuple[float, float]:
    """The least value, and one that a run's percentile does not fall below: two points lower, for a run draws."""
    low = float(values.min())
    high = float(np.percentile(values, max(0.0, percentile - 2), method="lower"))
    return scale * low, scale * high
