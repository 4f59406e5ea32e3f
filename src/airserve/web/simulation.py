"""The page of `airserve simulate --html`: distributions by span and the slices' shares over time, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from airserve.contract import Promise, Readings, percentile
from airserve.model import Array
from airserve.network.outcome import Outcome
from airserve.network.topology import Network
from airserve.network.traffic import Flow
from airserve.place.judging import verdict
from airserve.web import cells, words
from airserve.web.page import page, write
from airserve.web.sections import Safe, table, text
from airserve.web.view import blocks

POINTS = 120  # of a distribution at even distances, and beside them the quantiles of each span
TAIL = 1 - 0.1 ** np.linspace(0, 4, 13)  # of the requests, evenly on a log tail
LONGEST = 600  # points of a slice's share: more than a panel has pixels for
KEYS = ("p50", "p90", "p99", "max")


def contents(
    name: str,
    network: Network,
    flows: Sequence[Flow],
    outcome: Outcome,
    promises: dict[str, Promise],
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """What the page shows, as plain data; the same run gives the same, to the byte."""
    said = outcome.summary()
    return {
        "name": name,
        "seconds": seconds,
        "seed": seed,
        "services": [
            _service(flow, outcome.readings[flow.name], one, promises.get(flow.name))
            for flow, one in zip(flows, said["services"], strict=True)
        ],
        "slices": [
            {
                "name": one["name"],
                **{key: getattr(given, key) for key in ("dedicated", "min", "max")},
                **{
                    way: {**one[way], "mbps": round(one[way]["mbps"], 3), "per_s": blocks(one[way]["per_s"], LONGEST)}
                    for way in ("up", "down")
                },
            }
            for given, one in zip(network.slices, outcome.slices, strict=True)
        ],
        **({"map": cells.seen(outcome.many)} if outcome.many is not None else {}),
    }


def _service(flow: Flow, readings: Readings, said: dict[str, Any], promise: Promise | None) -> dict[str, Any]:
    q = promise.percentile if promise else 99.0
    found = verdict([readings], q, None)
    value = percentile(readings.latency_ms, q) if len(readings.sent_s) else np.inf
    slow = {(s.kind, s.direction, s.site): round(ms, 4) for s, ms in found.slow}
    answered = np.isfinite(readings.latency_ms)
    parts = readings.ms[answered]
    grid = _grid(parts)
    return {
        **{key: said[key] for key in ("name", "sent", "answered", "latency_ms")},
        "slice": flow.slice,
        "site": flow.site or flow.device_site,
        "devices": flow.devices,
        "rate_hz": flow.rate_hz,
        "transport": flow.transport,
        "percentile": q,
        "value_ms": round(value, 4) if np.isfinite(value) else None,
        "promise_ms": promise.latency_ms if promise else None,
        "least": promise.least if promise else None,
        "kept": bool(value <= promise.latency_ms) if promise and len(answered) >= promise.least else None,
        "spans": [
            {**one, "mean": round(float(parts[:, k].mean()), 4) if len(parts) else None,
             "slow": slow.get((one["kind"], one["direction"], one["site"]))}
            for k, one in enumerate(said["spans_ms"])
        ],
        "cdf": {
            "ms": grid.round(4).tolist(),
            "total": _shares(parts.sum(axis=1), grid, len(answered)),
            "spans": [_shares(parts[:, k], grid, len(answered)) for k in range(parts.shape[1])],
        },
    }  # fmt: skip


def _grid(parts: Array) -> Array:
    """Points, in ms, at which distributions of spans (n, spans) and of their sum are told, so that none has a gap."""
    whole = np.column_stack([parts, parts.sum(axis=1)])
    even = np.linspace(0, whole.max(initial=0.0) * 1.02 or 1.0, POINTS)
    quantiles = np.quantile(whole, TAIL, axis=0).ravel() if len(parts) else np.zeros(0)
    return np.unique(np.round(np.concatenate([even, quantiles, quantiles - 1e-3]).clip(0), 3))


def _shares(values: Array, grid: Array, n: int) -> list[float]:
    """Part of `n` requests that is at most so much, at points of a grid; what was not answered is never reached.

    >>> _shares(np.array([1.0, 3.0]), np.array([0.0, 2.0, 4.0]), 4)
    [0.0, 0.25, 0.5]
    """
    part: Array = np.searchsorted(np.sort(values), grid + 1e-6, side="right") / max(n, 1)
    return [round(float(x), 6) for x in part]


def render(found: dict[str, Any]) -> str:
    """The page: all numbers in the HTML itself, charts by scripts that are pinned by hash, no request."""
    headline, detail, state = sentence(found)
    tags = (found["name"], "twin", f"{found['seconds']:g} s", f"seed {found['seed']}")
    return page(
        "simulation",
        found["name"],
        "".join(f'<span class="tag">{text(tag)}</span>' for tag in tags),
        found,
        {
            "state": state,
            "headline": text(headline),
            "detail": text(detail),
            "services": _services(found),
            "spans": "".join(_spans(one) for one in found["services"]),
            "slices": _slices(found),
            "map": cells.section(found.get("map", {})),
        },
    )


def save(found: dict[str, Any], path: Path) -> Path:
    """Write the page of `render` to `path`, whose folder is made where it is missing, and return the path."""
    return write(render(found), path)


def sentence(found: dict[str, Any]) -> tuple[str, str, Literal["kept", "broken", "few"]]:
    """What came out, in a sentence, what it rests on, and its state: the promises are kept, one is not, or unknown."""
    promised = [one for one in found["services"] if one["promise_ms"] is not None]
    few = [one for one in promised if one["kept"] is None]
    broken = [one for one in promised if one["kept"] is False]
    sent = sum(one["sent"] for one in found["services"])
    answered = sum(one["answered"] for one in found["services"])
    rest = f"{words.count(answered)} of {words.count(sent)} requests were answered. Simulated: no packet was sent."
    if broken:
        worst = broken[0]
        value = "∞" if worst["value_ms"] is None else words.ms(worst["value_ms"])
        passes = f"{worst['name']}: p{worst['percentile']:g} {value} of {worst['promise_ms']:g} ms promised"
        which = f"{len(broken)} of {len(promised)} promises" if len(promised) > 1 else "The promise"
        return f"{which} would not be kept.", f"{passes}. {rest}", "broken"
    if few:
        first = few[0]
        needs = f"{first['name']}: p{first['percentile']:g} needs {words.count(first['least'])} requests"
        which = f"{len(few)} of {len(promised)} promises" if len(promised) > 1 else "the promise"
        return f"Too few requests to judge {which}.", f"{needs}, {words.count(first['sent'])} were sent. {rest}", "few"
    if promised:
        return f"{'All promises' if len(promised) > 1 else 'The promise'} would be kept.", rest, "kept"
    many = len(found["services"])
    return f"{many} service{'s' * (many != 1)}, {words.count(sent)} request{'s' * (sent != 1)}.", rest, "few"


def _services(found: dict[str, Any]) -> Safe:
    head = ["service", "slice", "site", "transport", "#devices", "#Hz each", "#sent", "#answered", "#promised",
            *(f"#{key}" for key in KEYS)]  # fmt: skip
    return table(
        "Latency by service",
        head,
        [
            [
                one["name"], one["slice"], one["site"], one["transport"], words.count(one["devices"]),
                words.plain(one["rate_hz"]), words.count(one["sent"]), words.count(one["answered"]),
                "–" if one["promise_ms"] is None else f"p{one['percentile']:g} {one['promise_ms']:g}",
                *("∞" if one["latency_ms"][key] is None else words.ms(one["latency_ms"][key]) for key in KEYS),
            ]
            for one in found["services"]
        ],
    )  # fmt: skip


def _spans(one: dict[str, Any]) -> str:
    rows: list[list[object]] = [
        [words.span(span), *(words.ms(span[key]) for key in ("p50", "p99", "mean", "slow"))] for span in one["spans"]
    ]
    sums = [None if any(s[key] is None for s in one["spans"]) else sum(s[key] for s in one["spans"])
            for key in ("mean", "slow")]  # fmt: skip
    rows.append(["sum", "", "", *map(words.ms, sums)])
    head = ["span", "#p50", "#p99", "#mean", f"#mean about p{one['percentile']:g}"]
    return f"<article><h3>{text(one['name'])}</h3>{table('Spans of ' + one['name'], head, rows)}</article>"


def _slices(found: dict[str, Any]) -> Safe:
    rows = [
        [
            one["name"],
            *(words.plain(one[key], " %") for key in ("dedicated", "min", "max")),
            *(
                cell
                for way in ("up", "down")
                for cell in (words.per_cent(one[way]["share_used"]), words.plain(one[way]["mbps"]))
            ),
        ]
        for one in found["slices"]
    ]
    head = ["slice", "#dedicated", "#min", "#max", "#↑ used", "#↑ Mbit/s", "#↓ used", "#↓ Mbit/s"]
    return table("Shares of the PRBs", head, rows)
