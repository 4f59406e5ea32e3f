"""The network simulated, faster than real time: every request up, through its site's queue, and down again."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airserve.contract import Readings, Span, percentile
from airserve.model import Array
from airserve.network.buffers import DOWN, UP, Config, N, State, enqueue, take_done, visible_slot
from airserve.network.jit import inner, njit
from airserve.network.mac import Grant, initial, prbs_there
from airserve.network.radio import Trace
from airserve.network.scheduler import quiet, step
from airserve.network.topology import Network
from airserve.network.traffic import Flow, join, requests

WARM_S = 1.0  # simulated before the first request that counts
DRAIN_S = 5.0  # after the last request came to the radio: what is open then is not answered
WAYS = (("up", UP), ("down", DOWN))
STAMPS = 5  # of a request: granted up, delivered up, started at the site, granted down, delivered down


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
        return {"services": services, "slices": slices, "realtime_factor": self.realtime_factor}


def run(
    network: Network,
    flows: Sequence[Flow],
    *,
    until_s: float,
    seed: int,
    warm_s: float = WARM_S,
    drain_s: float = DRAIN_S,
    trace: Trace | None = None,
    grant: Grant | None = None,
    processing: bool = True,
) -> Outcome:
    """Simulate some seconds of all flows together; the same seed gives the same Outcome.

    Every request becomes a row of its flow's Readings, sent in [0, until_s); the cell runs for `warm_s` before, and
    up to `drain_s` after the last came to the radio. The other arguments are those of `mac.Mac`.
    Raises `TrafficError` for a flow, `MacError` for a cell that cannot be.

    >>> hall = Network.model_validate({"cells": [{"name": "hall"}], "slices": [{"name": "all"}],
    ...     "sites": [{"name": "mast", "kind": "edge", "delay_ms": 1}]})
    >>> ask = Flow("ask", "all", devices=3, rate_hz=2, site="mast", bytes_up=[900], bytes_down=[200])
    >>> outcome = run(hall, [ask], until_s=2, seed=1)
    >>> outcome.readings["ask"].answered
    12
    """
    began_s = time.perf_counter()
    channel, *seeds = np.random.SeedSequence(seed).spawn(1 + len(flows))
    asked = requests(network, flows, until_s, warm_s, seeds)
    slice_of = [network.slice_index(flow.slice) for flow in flows for _ in range(flow.devices)]
    sent = asked[asked["site"] >= 0]
    config, state = initial(
        network,
        slice_of,
        seed=int(channel.generate_state(1, np.uint64)[0] >> np.uint64(1)),
        trace=trace,
        grant=grant,
        processing=processing,
        records=max(1, len(sent)),
    )
    marks = np.ceil((warm_s + np.append(np.arange(0, until_s, 1.0), until_s)) / config.slot_s - 1e-6).astype(np.int64)
    last_s = max(warm_s + until_s, sent["ready_s"].max(initial=0.0))
    end = int(np.ceil((last_s + drain_s) / config.slot_s))
    stamps, counts, cpu_s = _simulated(network, config, state, sent, marks, end)
    all_stamps = np.full((len(asked), STAMPS), np.nan)
    all_stamps[asked["site"] >= 0] = stamps
    simulated_s = max(warm_s + until_s, int(state.n[N.slot]) * config.slot_s)
    readings = {}
    for number, flow in enumerate(flows):
        mine = (asked["flow"] == number) & (asked["sent_s"] >= warm_s)
        readings[flow.name] = _readings(network, flow, asked[mine], all_stamps[mine], warm_s)
    return Outcome(
        readings,
        _slices(network, config, state, marks, counts),
        simulated_s / max(cpu_s, 1e-9),
        time.perf_counter() - began_s,
        float(state.n[N.failed] / max(state.n[N.blocks], 1)),
    )


def _simulated(
    network: Network, c: Config, s: State, sent: Array, marks: Array, end: int
) -> tuple[Array, Array, float]:
    """Stamps (requests, STAMPS), counts at the marks (marks, 2, slices, 2), and the CPU seconds of the simulation."""
    delay_s = np.array([site.delay_ms / 1000 for site in network.sites])
    free_s = np.full((len(network.sites), max(site.cores for site in network.sites)), np.inf)
    for i, site in enumerate(network.sites):
        free_s[i, : site.cores] = 0.0
    stamps = np.full((len(sent), STAMPS), np.nan)
    counts = np.zeros((len(marks), 2, len(network.slices), 2), np.int64)
    if not _simulate.signatures:  # compile, or load, before the clock is read
        _simulate(s, c, sent[:0], stamps[:0], delay_s, free_s, marks[:0], counts[:0], 0)
    cpu_s = time.thread_time()
    _simulate(s, c, sent, stamps, delay_s, free_s, marks, counts, end)
    return stamps, counts, time.thread_time() - cpu_s


@njit
def _simulate(
    s: State,
    c: Config,
    asked: Array,
    stamps: Array,
    delay_s: Array,
    free_s: Array,
    marks: Array,
    counts: Array,
    end: int,
) -> None:
    """Slot by slot until all requests are answered or `end`; a quiet cell jumps to the next arrival."""
    up, answered, mark = 0, 0, 0
    answers = [(np.inf, -1)]  # heap: when the base station gets an answer, and to which request
    while answered < asked.size and s.n[N.slot] < end:
        slot = s.n[N.slot]
        mark = note(s, marks, counts, mark, slot)
        while up < asked.size and visible_slot(c, asked[up].ready_s) <= slot:
            enqueue(s, c, UP * c.ues + asked[up].ue, asked[up].up, asked[up].ready_s, up)
            up += 1
        while len(answers) > 1 and visible_slot(c, answers[0][0]) <= slot:
            at_s, i = heapq.heappop(answers)
            enqueue(s, c, DOWN * c.ues + asked[i].ue, asked[i].down, at_s, i)
        if quiet(s):
            nearest = end if up == asked.size else visible_slot(c, asked[up].ready_s)
            if len(answers) > 1:
                nearest = min(nearest, visible_slot(c, answers[0][0]))
            s.n[N.slot] = min(nearest, end)
            continue
        step(s, c)
        while s.n[N.done] > 0:
            record = s.record[take_done(s)]
            i = record.id
            if record.direction == UP:
                site = asked[i].site
                arrived_s = record.delivered_s + delay_s[site]
                stamps[i, 0], stamps[i, 1] = record.granted_s, record.delivered_s
                stamps[i, 2] = join(free_s[site], arrived_s, asked[i].site_seconds)
                heapq.heappush(answers, (stamps[i, 2] + asked[i].site_seconds + delay_s[site], i))
            else:
                stamps[i, 3], stamps[i, 4] = record.granted_s, record.delivered_s
                answered += 1
    note(s, marks, counts, mark, end)


@inner
def note(s: State, marks: Array, counts: Array, mark: int, slot: int) -> int:
    """Copy what was counted at every mark up to a slot; returns the next mark."""
    while mark < marks.size and marks[mark] <= slot:
        for k in range(s.prbs_used.shape[0]):
            for direction in range(2):
                counts[mark, 0, k, direction] = s.prbs_used[k, direction]
                counts[mark, 1, k, direction] = s.nbytes[k, direction]
        mark += 1
    return mark


def _readings(network: Network, flow: Flow, asked: Array, stamps: Array, warm_s: float) -> Readings:
    """Spans of one flow's requests, in order of sending; differences of the stamps, so that they add up."""
    order = np.argsort(asked["sent_s"], kind="stable")
    asked, stamps = asked[order], stamps[order]
    spans: list[Span] = []
    times = [asked["sent_s"]]

    def until(kind: Any, direction: Any, site: str, at_s: Array) -> None:
        spans.append(Span(kind, direction, site))
        times.append(at_s)

    if flow.computes_on_device:
        until("queue", "", flow.device_site, asked["started_s"])
        until("compute", "", flow.device_site, asked["ready_s"])
    if flow.site:
        cell, delay_s = network.cell.name, network.site(flow.site).delay_ms / 1000
        granted_up, delivered_up, started, granted_down, delivered_down = stamps.T
        until("wait", "up", cell, granted_up)
        until("air", "up", cell, delivered_up)
        until("transit", "up", flow.site, delivered_up + delay_s)
        until("queue", "", flow.site, started)
        until("compute", "", flow.site, started + asked["site_seconds"])
        until("transit", "down", flow.site, started + asked["site_seconds"] + delay_s)
        until("wait", "down", cell, granted_down)
        until("air", "down", cell, delivered_down)
    ms = np.diff(np.array(times), axis=0).T * 1e3
    ms[np.isnan(ms).any(axis=1)] = np.nan
    return Readings(flow.name, tuple(spans), asked["sent_s"] - warm_s, asked["device"].copy(), ms)


def _slices(network: Network, c: Config, s: State, marks: Array, counts: Array) -> list[dict[str, Any]]:
    there = np.array([prbs_there(s, c, int(mark)) for mark in marks])
    seconds = (marks[-1] - marks[0]) * c.slot_s
    prbs, nbytes = counts[:, 0], counts[:, 1]
    found = []
    for k, one in enumerate(network.slices):
        row: dict[str, Any] = {"name": one.name}
        for way, d in WAYS:
            used = np.diff(prbs[:, k, d]) / np.maximum(np.diff(there[:, d]), 1)
            row[way] = {
                "share_used": float((prbs[-1, k, d] - prbs[0, k, d]) / max(there[-1, d] - there[0, d], 1)),
                "mbps": float((nbytes[-1, k, d] - nbytes[0, k, d]) * 8e-6 / seconds),
                "per_s": [round(float(x), 6) for x in used],
            }
        found.append(row)
    return found


def _percentiles(ms: Array) -> dict[str, float | None]:
    known = ms[~np.isnan(ms)]
    return {f"p{q}": _number(percentile(known, q)) if len(known) else None for q in (50, 99)}


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
