"""The network simulated, faster than real time: every request up, through its site's queue, and down again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from airserve.contract import Readings, Span
from airserve.model import Array
from airserve.network import energy, equipment, transport
from airserve.network.buffers import DOWN, UP
from airserve.network.core import ANY, Controller, View, compiled, links, reachable, renew
from airserve.network.headers import PACKET_BYTES
from airserve.network.mac import Grant
from airserve.network.many import WAYS
from airserve.network.outcome import ABSENCES, Outcome
from airserve.network.passage import (
    ARRIVED,
    AT_BASE,
    DELIVERED_DOWN,
    DELIVERED_UP,
    ENDED,
    EVENT,
    GRANTED_DOWN,
    GRANTED_UP,
    RELEASED_DOWN,
    RELEASED_UP,
    STAMPS,
    STARTED,
    M,
    World,
)
from airserve.network.radio import Trace
from airserve.network.slicing import check
from airserve.network.stations import Radio, stand
from airserve.network.topology import Network
from airserve.network.traffic import Flow, carriers, device_of, requests

WARM_S = 1.0  # simulated before the first request that counts
DRAIN_S = 5.0  # after the last request came to the radio: what is open then is not answered


def run(
    network: Network,
    flows: Sequence[Flow],
    *,
    until_s: float,
    seed: int,
    warm_s: float = WARM_S,
    drain_s: float = DRAIN_S,
    trace: Trace | Sequence[Trace] | None = None,
    grant: Grant | None = None,
    processing: bool = True,
    control: Controller | None = None,
    control_s: float = 1.0,
) -> Outcome:
    """Simulate some seconds of all flows together; the same seed gives the same Outcome.

    Every request becomes a row of its flow's Readings, sent in [0, until_s); the cell runs for `warm_s` before, and
    up to `drain_s` after the last came to the radio. `control` is asked every `control_s` from 0 on for the rules of
    the user-plane function; without it those of the network hold. The other arguments are those of `mac.Mac`.
    Raises `TrafficError` for a flow, `MacError` for a cell, `PolicyError` for a slice policy and `CoreError` for a
    rule that cannot be.

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
    channels = [flow.channel for flow in flows for _ in range(flow.devices)]
    over_air = asked["site"] >= 0
    sent = asked[over_air]
    times_s = warm_s + np.append(np.arange(0, until_s, 1.0), until_s)
    radio = stand(
        network,
        slice_of,
        marks=len(times_s),
        seed=int(channel.generate_state(1, np.uint64)[0] >> np.uint64(1)),
        trace=trace,
        grant=grant,
        processing=processing,
        records=max(1, len(sent) + 2 * _bursts(sent)),
        kinds=[flow.ue for flow in flows for _ in range(flow.devices)],
        carriers=carriers(network, flows),
        device_of=device_of(flows),
        channels=channels,
    )
    config = radio.config
    marks = np.ceil(times_s / config.slot_s - 1e-6).astype(np.int64)
    last_s = max(warm_s + until_s, sent["ready_s"].max(initial=0.0))
    end = int(np.ceil((last_s + drain_s) / config.slot_s))
    world = _world(network, config.ues, sent, marks)
    radio.edges = [int(marks[0]), int(marks[-1])]
    rules = compiled(network, network.rules, [flow.name for flow in flows], warm_s)
    radio.run(world, rules, 0)  # compile, or load, before the clock is read
    radio.book(0)
    cpu_s = time.thread_time()
    if control is not None:
        _controlled(network, flows, control, radio, world, warm_s, np.arange(0, until_s, control_s), end)
    else:
        radio.run(world, rules, end)
    radio.close(world)
    cpu_s = time.thread_time() - cpu_s
    check(network.cell.slicing, radio.slices, config.prbs)
    stamps, site = np.full((len(asked), STAMPS), np.nan), np.full(len(asked), ANY)
    stamps[over_air], site[over_air] = world.stamps, world.site
    absent_s = np.zeros((len(asked), len(ABSENCES)))
    absent_s[over_air] = world.absent_s.sum(axis=1)
    simulated_s = max(warm_s + until_s, radio.slot * config.slot_s)
    readings, absent_ms = {}, {}
    for number, flow in enumerate(flows):
        mine = np.flatnonzero((asked["flow"] == number) & (asked["sent_s"] >= warm_s))
        mine = mine[np.argsort(asked["sent_s"][mine], kind="stable")]
        absent_ms[flow.name] = 1e3 * absent_s[mine]
        readings[flow.name] = _readings(network, flow, asked[mine], stamps[mine], site[mine], warm_s, bool(control))
    return Outcome(
        readings,
        _slices(network, radio, marks, world.counts),
        simulated_s / max(cpu_s, 1e-9),
        time.perf_counter() - began_s,
        radio.failed_blocks,
        absent_ms,
        int(world.n[M.lost]),
        radio.seen(marks),
        *_power(network, flows, radio),
    )


def _power(
    network: Network, flows: Sequence[Flow], radio: Radio
) -> tuple[dict[str, Array], dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Mean relative power of the devices of each flow, the states that they were in, and the cells'."""
    equipments = [equipment.parse(flow.ue) for flow in flows for _ in range(flow.devices)]
    power = np.zeros(len(equipments))
    states: dict[str, Array] = {}
    stations: list[dict[str, Any]] = [{"name": name} for name in network.cell_names]
    for (cell, ues, cells), first, last in zip(radio.kinds(), *radio.books, strict=True):
        done = energy.since(first, last)
        of_kind, in_states = energy.devices(cell, [one.draw(cell) for one in equipments], done)
        power[ues] = of_kind[ues]
        for state, part in in_states.items():
            states.setdefault(state, np.zeros(len(power)))[ues] = part[ues]
        for k in np.flatnonzero(cells):
            stations[k] |= energy.station(cell, float(done.sent[k]), float(done.prbs_down[k]), done.slot)
    of_flow, of_states, at = {}, {}, 0
    owner = np.array(device_of(flows))
    for flow in flows:
        mine = owner[at : (at := at + flow.devices)]
        of_flow[flow.name] = power[mine]
        of_states[flow.name] = {state: float(part[mine].mean()) for state, part in states.items()}
    return of_flow, of_states, stations


def _world(network: Network, ues: int, sent: Array, marks: Array) -> World:
    """Everything at its start; big enough for every burst and acknowledgement of TCP."""
    n, tcp = len(sent), sent["transport"] > transport.UDP
    events = 2 * (n + _bursts(sent)) + 16
    free_s = np.full((len(network.sites), max(site.cores for site in network.sites)), np.inf)
    for i, site in enumerate(network.sites):
        free_s[i, : site.cores] = 0.0
    return World(
        n=np.zeros(M.size, np.int64),
        asked=sent,
        stamps=np.full((n, STAMPS), np.nan),
        absent_s=np.zeros((n, 2, len(ABSENCES))),
        site=np.full(n, ANY),
        rule=np.full(n, ANY),
        rounds=np.zeros(n, np.int64),
        connection=np.zeros(n, np.int64),
        following=np.full((n, 2), -1),
        sender=transport.senders(ues + n if tcp.any() else 1),
        event=np.zeros(events, EVENT),
        heap=np.arange(events),
        offers=np.zeros(n + _bursts(sent) + 16, EVENT),
        links=links(network),
        speed=np.array([site.speed for site in network.sites]),
        free_s=free_s,
        marks=marks,
        counts=np.zeros((len(marks), 2, len(network.slices), 2), np.int64),
    )


def _bursts(sent: Array) -> int:
    """At most so many bursts and handshakes do the requests send over TCP."""
    tcp = sent[sent["transport"] > transport.UDP]
    return int((3 + tcp["up"] // PACKET_BYTES + tcp["down"] // PACKET_BYTES + 2).sum())


def _readings(
    network: Network, flow: Flow, asked: Array, stamps: Array, site: Array, warm_s: float, controlled: bool
) -> Readings:
    """Spans of one flow's requests, which are in order of sending; differences of the stamps, so that they add up.

    Where rules may send requests to several sites, each site has its spans, 0 ms for requests that went elsewhere.
    """
    spans: list[Span] = []
    times = [asked["sent_s"]]

    def until(kind: Any, direction: Any, where: str, at_s: Array) -> None:
        spans.append(Span(kind, direction, where))
        times.append(at_s)

    def at_sites(kind: Any, direction: Any, at_s: Array) -> None:
        for name in reachable(network, network.rules, flow.site, controlled):
            here = site == [one.name for one in network.sites].index(name)
            until(kind, direction, name, np.where(here, at_s, times[-1]))

    if flow.computes_on_device:
        until("queue", "", flow.device_site, asked["started_s"])
        until("compute", "", flow.device_site, asked["ready_s"])
    if flow.site:
        cell, tcp = network.air, flow.transport.startswith("t")
        if tcp:
            until("wait", "up", "transport", stamps[:, RELEASED_UP])
        until("wait", "up", cell, stamps[:, GRANTED_UP])
        until("air", "up", cell, stamps[:, DELIVERED_UP])
        at_sites("transit", "up", stamps[:, ARRIVED])
        at_sites("queue", "", stamps[:, STARTED])
        at_sites("compute", "", stamps[:, ENDED])
        if tcp:
            until("wait", "down", "transport", stamps[:, RELEASED_DOWN])
        at_sites("transit", "down", stamps[:, AT_BASE])
        until("wait", "down", cell, stamps[:, GRANTED_DOWN])
        until("air", "down", cell, stamps[:, DELIVERED_DOWN])
    ms = np.diff(np.array(times), axis=0).T * 1e3
    ms[np.isnan(ms).any(axis=1)] = np.nan
    ms[~np.isfinite(ms).all(axis=1)] = np.nan
    return Readings(flow.name, tuple(spans), asked["sent_s"] - warm_s, asked["device"].copy(), ms)


def _controlled(
    network: Network,
    flows: Sequence[Flow],
    control: Controller,
    radio: Radio,
    w: World,
    warm_s: float,
    times_s: Array,
    end: int,
) -> None:
    """Simulate up to `end`, and ask the controller for the rules at every one of some times of the run."""
    names = [flow.name for flow in flows]
    rules = compiled(network, network.rules, names, warm_s)
    since_s, used, there = -np.inf, radio.prbs_used.copy(), radio.prbs_there(0)
    for now_s in times_s:
        radio.run(w, rules, int(np.ceil((warm_s + now_s) / radio.config.slot_s - 1e-6)))
        done_s = w.stamps[:, DELIVERED_DOWN]
        fresh = (done_s > since_s) & (done_s <= warm_s + now_s)
        latency_ms = 1e3 * (done_s - w.asked["sent_s"])
        all_prbs = radio.prbs_there(radio.slot)
        share = (radio.prbs_used - used) / np.maximum(all_prbs - there, 1)
        wanted = control(
            View(
                float(now_s),
                {name: latency_ms[fresh & (w.asked["flow"] == k)] for k, name in enumerate(names)},
                {one.name: (float(share[k, DOWN]), float(share[k, UP])) for k, one in enumerate(network.slices)},
            )
        )
        since_s, used, there = warm_s + now_s, radio.prbs_used.copy(), all_prbs
        if wanted is not None:
            rules = renew(rules, compiled(network, wanted, names, warm_s), w.rule)
    radio.run(w, rules, end)


def _slices(network: Network, radio: Radio, marks: Array, counts: Array) -> list[dict[str, Any]]:
    there = np.array([radio.prbs_there(int(mark)) for mark in marks])
    seconds = (marks[-1] - marks[0]) * radio.config.slot_s
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
