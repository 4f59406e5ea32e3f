"""What a run of the twin found, as arrays and as plain data."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from airserve.contract import Readings, percentile
from airserve.model import Array
from airserve.network.many import WAYS, Many

ABSENCES = ("access", "sleep")  # parts of `wait`: for paging and random access, for an on-duration (rrc.py)


@dataclass(frozen=True)
class Outcome:
    """What a run of the twin found.

    `slices` has for each, in the network's order, {"name", "up": {"share_used", "mbps", "per_s"}, "down": {...}}:
    the part of the PRBs used, application bytes delivered, and the part used in each second.
    """

    readings: dict[str, Readings]
    slices: list[dict[str, Any]]
    realtime_factor: float  # simulated time by CPU time, compilation aside
    seconds: float  # that the run took
    failed_blocks: float  # part of the transport blocks not decoded at once
    absent_ms: dict[str, Array]  # by service, (n, 2): what of each request's waits went to `ABSENCES`
    lost: int = 0  # requests that a rule dropped, or that found the queue of a link full
    many: Many | None = None  # where there are several cells
    power: dict[str, Array] = field(default_factory=dict)  # by service, (devices,): mean relative power, TR 38.840
    states: dict[str, dict[str, float]] = field(default_factory=dict)  # by service: part of the time in each state
    stations: list[dict[str, Any]] = field(default_factory=list)  # by cell: {"name", "power", "sends", "listens"}

    def summary(self) -> dict[str, Any]:
        """What `airserve simulate --json` prints: plain data; None where nothing was answered."""
        services = [
            {
                "name": name,
                "sent": len(one.sent_s),
                "answered": one.answered,
                "latency_ms": {
                    f"p{q}" if q < 100 else "max": _number(percentile(one.latency_ms, q)) if len(one.sent_s) else None
                    for q in (50, 90, 99, 100)
                },
                "share_of_p99": self._share_of_p99(name),
                "power": _number(float(self.power[name].mean())),
                "share_of_time": {state: round(part, 4) for state, part in self.states[name].items()},
                "spans_ms": [
                    {"kind": span.kind, "direction": span.direction, "site": span.site, **_percentiles(one.ms[:, i])}
                    for i, span in enumerate(one.spans)
                ],
            }
            for name, one in self.readings.items()
        ]
        slices = [
            {"name": one["name"], **{way: {k: one[way][k] for k in ("share_used", "mbps")} for way, _ in WAYS}}
            for one in self.slices
        ]
        found: dict[str, Any] = {"services": services, "slices": slices, "base_stations": self.stations}
        return found if self.many is None else found | {"cells": self.many.rows()}

    def _share_of_p99(self, name: str) -> dict[str, float | None]:
        """What part of the latency of requests ranked about the 99th percentile went to each of `ABSENCES`."""
        latency_ms, absent_ms = self.readings[name].latency_ms, self.absent_ms[name]
        answered = np.flatnonzero(np.isfinite(latency_ms))
        order = answered[np.argsort(latency_ms[answered], kind="stable")]
        at, half = int(0.99 * len(order)), len(order) // 200
        slow = order[max(0, at - half) : at + half + 1]
        if not len(slow):
            return dict.fromkeys(ABSENCES)
        parts = absent_ms[slow].sum(axis=0) / latency_ms[slow].sum()
        return {one: round(float(part), 4) for one, part in zip(ABSENCES, parts, strict=True)}


def _percentiles(ms: Array) -> dict[str, float | None]:
    known = ms[~np.isnan(ms)]
    return {f"p{q}": _number(percentile(known, q)) if len(known) else None for q in (50, 99)}


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
