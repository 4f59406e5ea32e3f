"""Three accounts of a request made one: the device's clock, the relay's log and the sites' Server-Timing.

Each span ends where the next begins, so a Reading's spans add up to its latency with nothing left over. What none of
the accounts names goes to the span in which it passed:

    queue at the device   all until the relay has the first byte that is not compute: the driver's lateness, the local
                          sockets, waiting for the core; and the head's handling of the tail's answer
    wait up               from the intended time (with a head: from the relay's first byte) to the first transmission:
                          the driver's lateness and its socket, then scheduling request and grant
    air up                to the last byte's delivery, retransmissions included
    transit up            to the release of the last byte: the site's delay and the relay's lateness
    queue at the site     to the first byte of the answer, less compute: sockets and handling are in it
    compute               as the site measured it
    transit down          the site's delay
    wait down             from the radio having the answer's first byte to its first transmission
    air down              to the answer's end at the device: the relay's lateness and the device's socket are in it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from airserve.contract import AirSite, Asker, Deployment, Readings, Span
from airserve.model import Array
from airserve.serve.asking import Asked
from airserve.timing import AirBytes, Timing, TimingError, parse_air, parse_timing

DOWN, UP = 0, 1


@dataclass(frozen=True)
class Crossing:
    """Bytes that crossed the air in one direction: times of the first record's start and of the last one's end."""

    arrived_s: float
    granted_s: float
    delivered_s: float
    released_s: float


@final
class Crossings:
    """The relay's log, to be asked when bytes of a connection crossed. `log` has the dtype of `airlog.RECORD`."""

    def __init__(self, log: Array) -> None:
        order = np.lexsort((log["end"], log["connection"], log["direction"], log["port"], log["device"]))
        log = log[order]
        keys = np.stack([log["device"], log["port"].astype(np.uint32), log["direction"].astype(np.uint32)])
        edges = np.flatnonzero((np.diff(keys) != 0).any(axis=0) | (np.diff(log["connection"]) != 0)) + 1
        self._found: dict[tuple[int, int, int], list[Array]] = {}
        for part in np.split(log, edges) if len(log) else ():
            key = int(part["device"][0]), int(part["port"][0]), int(part["direction"][0])
            self._found.setdefault(key, []).append(part)

    def find(self, device: int, port: int, direction: int, at: tuple[int, int], since_s: float) -> Crossing | None:
        """When the bytes `at` of a connection crossed; None where the log does not tell.

        A port may serve one connection after another; bytes that arrived before `since_s` are another's.
        """
        for part in self._found.get((device, port, direction), ()):
            first = int(np.searchsorted(part["end"], at[0], side="right"))
            last = int(np.searchsorted(part["end"], at[1], side="left"))
            if last < len(part) and part["end"][first] - part["nbytes"][first] <= at[0]:
                head, tail = part[first], part[last]
                if tail["arrived_s"] >= since_s and not np.isnan(tail["released_s"]):
                    return Crossing(
                        float(head["arrived_s"]),
                        float(head["granted_s"]),
                        float(tail["delivered_s"]),
                        float(tail["released_s"]),
                    )
        return None


def spans(deployment: Deployment, asker: Asker) -> tuple[Span, ...]:
    """The columns of a service's Readings; the twin has the same."""
    here = (Span("queue", "", asker.device_site), Span("compute", "", asker.device_site))
    if not asker.site or deployment.air is None:
        return here
    cell, site = str(deployment.air.network["cells"][0]["name"]), asker.site
    there = (
        Span("wait", "up", cell), Span("air", "up", cell), Span("transit", "up", site),
        Span("queue", "", site), Span("compute", "", site),
        Span("transit", "down", site), Span("wait", "down", cell), Span("air", "down", cell),
    )  # fmt: skip
    return (*here, *there) if asker.to == "device" else there


def join(deployment: Deployment, asker: Asker, asked: Asked, log: Array | None, began_s: float) -> tuple[Readings, int]:
    """The Readings of a service, and how many answered requests the accounts do not explain (their spans are NaN).

    `log` is the relay's, None where nothing crosses the air; `began_s` the run's start on time.monotonic().
    """
    columns = spans(deployment, asker)
    ms = np.full((len(asked.sent_s), len(columns)), np.nan)
    crossings = Crossings(log) if log is not None else None
    site = next((s for s in deployment.air.sites if s.name == asker.site), None) if deployment.air else None
    unexplained = 0
    for k in np.flatnonzero(np.isfinite(asked.done_s)):
        try:
            row = _row(asker, asked, int(k), crossings, site, began_s)
        except TimingError:
            row = None
        if row is None:
            unexplained += 1
        else:
            ms[k] = row
    return Readings(asker.service, columns, asked.sent_s, asked.device, ms), unexplained


def _row(
    asker: Asker, asked: Asked, k: int, crossings: Crossings | None, site: AirSite | None, began_s: float
) -> list[float] | None:
    """The spans of an answered request in ms."""
    began, done = began_s + float(asked.sent_s[k]), began_s + float(asked.done_s[k])
    timings = parse_timing(asked.timing[k])
    if crossings is None or site is None:
        compute = _compute_ms(timings, 0)
        return None if compute is None else [1e3 * (done - began) - compute, compute]
    if asker.to == "air":
        at, compute = asked.bytes_at[k], _compute_ms(timings, 0)
        legs = _legs(asker, asked, k, crossings, site, at, compute, began)
        if legs is None:
            return None
        times, compute_ms, _, _ = legs
        return _air_ms(began, times, compute_ms, done)
    onward = next((timing for timing in timings if timing.name == "air"), None)
    head, tail = _compute_ms(timings, 0), _compute_ms(timings, 1)
    if onward is None or head is None:
        return None
    legs = _legs(asker, asked, k, crossings, site, parse_air(onward.desc), tail, began)
    if legs is None:
        return None
    times, compute_ms, arrived, released = legs
    around_ms = 1e3 * (arrived - began) - head + 1e3 * (done - released)
    return [around_ms, head, *_air_ms(arrived, times, compute_ms, released)]


def _legs(
    asker: Asker,
    asked: Asked,
    k: int,
    crossings: Crossings,
    site: AirSite,
    at: AirBytes | None,
    compute_ms: float | None,
    began: float,
) -> tuple[list[float], float, float, float] | None:
    """Boundaries between the spans, the site's compute, the first byte's arrival, the answer's release."""
    if at is None or compute_ms is None:
        return None
    device = asker.air[int(asked.device[k])]
    up = crossings.find(device, at.port, UP, at.up, began)
    down = crossings.find(device, at.port, DOWN, at.down, began)
    if up is None or down is None:
        return None
    delay_s = site.delay_ms / 1e3
    times = [
        up.granted_s, up.delivered_s, up.released_s, down.arrived_s - delay_s, down.arrived_s, down.granted_s
    ]  # fmt: skip
    return times, compute_ms, up.arrived_s, down.released_s


def _air_ms(begin: float, times: list[float], compute_ms: float, end: float) -> list[float]:
    """wait, air, transit up; queue, compute; transit, wait, air down."""
    wait, air, transit, at_site, *down = 1e3 * np.diff([begin, *times, end])
    return [wait, air, transit, at_site - compute_ms, compute_ms, *down]


def _compute_ms(timings: list[Timing], which: int) -> float | None:
    """The compute of the first site of the chain (0) or of the second (1)."""
    found = [timing.ms for timing in timings if timing.name == "compute"]
    return found[which] if which < len(found) else None
