"""A report as its readers want it: every known key present, numbers finite, series thin, and the words that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from airserve.web import words

Plain = dict[str, Any]

REPORT: Plain = {
    "name": "", "made": "", "life": "", "valid": True, "invalid_why": "", "lateness_ms_p99": None,
    "duration_s": None, "seed": None, "emulation": [], "shared": "", "not_shared": "",
}  # fmt: skip
SERVICE: Plain = {
    "name": "", "model": "", "variant": "", "cut": "", "encoding": "", "sites": [], "slice": "",
    "devices": None, "rate_hz": None, "promise_ms": None, "percentile": 99, "max_accuracy_drop": None,
    "predicted_ms": None, "predicted_interval_ms": None, "measured_ms": None, "measured_interval_ms": None,
    "measured_p50_ms": None, "sent": None, "answered": None, "failed": None, "verdict": None, "kept": None,
    "latency_verdict": None,
    "why": "", "cost": None, "refused": [], "max_devices": None, "binds": "", "slow_ranks": None,
}  # fmt: skip
SCORE: Plain = {
    "metric": "", "value": None, "n": None, "before": None, "drop": None, "drop_interval": None, "planned_value": None,
    "planned_drop": None, "planned_n": None, "verdict": None,
}  # fmt: skip
RUNNER_UP: Plain = {
    "label": "", "variant": "", "cut": "", "encoding": "", "sites": [], "predicted_ms": None,
    "predicted_interval_ms": None, "cost": None, "score": None, "why": "", "gain": "",
    "gain_ms": None, "judged_by": "",
}  # fmt: skip
SPAN: Plain = {
    "kind": "", "direction": "", "site": "", "median_ms": None, "slow_ms": None, "predicted_slow_ms": None,
    "predicted_median_ms": None,
}  # fmt: skip
PLAN: Plain = {"seconds": None, "headroom": None, "limits": [], "stated": []}
SLICE: Plain = {"name": "", "dedicated": None, "min": None, "max": None}
SHARE: Plain = {"share_used": None, "predicted_share": None, "mbps": None, "per_s": []}

POINTS = 11_000  # of all series together, so that a report stays far below 300 kB
LONGEST = 600  # points of one series: more than a panel has pixels for


def view(report: Mapping[str, Any]) -> Plain:
    """The report with every known key (None or empty where absent), unknown keys left out, and words added.

    Added: `headline` and `detail`; per service `state` (kept, broken, close, few), `word`, `placed`, `foretold` (the
    waterfall is a prediction) and `guilty` (the index of the span that costs most against the plan, or None); `runs`
    becomes a list of `{"name", "valid", "invalid_why", "services"}`. A number that is not finite becomes None: that is
    how a percentile among unanswered requests is given.

    >>> seen = view({"services": [{"name": "inspect", "verdict": "kept", "measured_ms": float("inf"), "odd": 1}]})
    >>> seen["services"][0]["word"], seen["services"][0]["measured_ms"], "odd" in seen["services"][0]
    ('kept', None, False)
    """
    plain = _clean(report)
    runs = [_run(run, place) for place, run in enumerate(plain.get("runs") or [], start=1)]
    seen = _known(plain, REPORT) | {
        "plan": _known(plain.get("plan") or {}, PLAN),
        "services": [_service(service) for service in plain.get("services") or []],
        "slices": [
            _known(one, SLICE) | {way: _known(one.get(way) or {}, SHARE) for way in ("up", "down")}
            for one in plain.get("slices") or []
        ],
        "runs": runs,
    }
    _thin(seen)
    seen["headline"], seen["detail"] = words.sentence(seen)
    return seen


def _known(given: Mapping[str, Any], defaults: Plain) -> Plain:
    return {key: default if given.get(key) is None else given[key] for key, default in defaults.items()}


def _run(run: Mapping[str, Any], place: int) -> Plain:
    """A further run: a report of its own, or one service that was measured again."""
    services = run.get("services") if "services" in run else [run]
    return {
        "name": (run.get("name") if "services" in run else run.get("run")) or f"run {place}",
        "valid": run.get("valid") is not False,
        "invalid_why": run.get("invalid_why") or "",
        "services": [_service(service) for service in services or []],
    }


def _service(given: Mapping[str, Any]) -> Plain:
    service = _known(given, SERVICE)
    score = given.get("score")
    over_time, cdf, capacity = (given.get(key) or {} for key in ("over_time", "cdf", "capacity"))
    service |= {
        "score": _score(score) if score and score.get("value") is not None else None,
        "runners_up": [_known(one, RUNNER_UP) for one in given.get("runners_up") or []],
        "waterfall": [_known(span, SPAN) for span in given.get("waterfall") or []],
        "worst": [_known(span, SPAN) | {"ms": span.get("ms")} for span in given.get("worst") or []],
        "over_time": {key: over_time.get(key) or [] for key in ("t_s", "percentile_ms", "p50_ms", "window_s")},
        "cdf": {key: cdf.get(key) or [] for key in ("ms", "measured", "predicted")},
        "capacity": {key: capacity.get(key) or [] for key in ("devices", "ms", "low", "high")},
    }
    for one in service["runners_up"]:
        one["label"] = one["label"] or words.placed(one)
        one["gain"] = one["gain"] or ("" if one["gain_ms"] is None else f"{words.signed(one['gain_ms'])} ms")
    _foretell(service)
    service["word"] = words.word(service)
    service["state"] = words.STATE[service["word"]]
    service["placed"] = words.placed(service)
    service["guilty"] = words.guilty(service)
    return service


def _score(given: Mapping[str, Any]) -> Plain:
    score = _known(given, SCORE)
    if score["drop"] is None and score["before"] is not None:
        score["drop"] = score["before"] - score["value"]
    return score


def _foretell(service: Plain) -> None:
    """Where no request was measured, the waterfall is the predicted one, and `foretold` says so."""
    spans = service["waterfall"]
    service["foretold"] = bool(spans) and all(span["slow_ms"] is None for span in spans)
    if service["foretold"]:
        for span in spans:
            span["median_ms"], span["slow_ms"] = span["predicted_median_ms"], span["predicted_slow_ms"]
            span["predicted_slow_ms"] = None


def _clean(value: Any) -> Any:
    """Plain JSON values: no number that is not finite, and five significant digits, which no panel exceeds."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return float(f"{number:.5g}") if math.isfinite(number) and abs(number) < 1e5 else _large(number)
    if hasattr(value, "tolist"):
        return _clean(value.tolist())
    if isinstance(value, Sequence):
        return [_clean(item) for item in value]
    return str(value)


def _large(number: float) -> float | None:
    return round(number, 1) if math.isfinite(number) else None


def _thin(seen: Plain) -> None:
    """Shorten the series in place; of latencies a point then is the highest of its block, so that no peak is lost."""
    services = seen["services"] + [service for run in seen["runs"] for service in run["services"]]
    series = 10 * len(services) + 2 * len(seen["slices"])
    longest = max(30, min(LONGEST, POINTS // max(1, series)))
    for service in services:
        times = service["over_time"]
        service["over_time"] = {
            "window_s": times["window_s"],
            "t_s": blocks(times["t_s"], longest, first=True),
            "percentile_ms": blocks(times["percentile_ms"], longest),
            "p50_ms": blocks(times["p50_ms"], longest),
        }
        for key in ("cdf", "capacity"):
            service[key] = {name: spread(values, longest) for name, values in service[key].items()}
    for one in seen["slices"]:
        for way in ("up", "down"):
            one[way]["per_s"] = blocks(one[way]["per_s"], longest)


def blocks(values: list[Any], longest: int, first: bool = False) -> list[Any]:
    """At most `longest` values: the highest of each block (or the first).

    >>> blocks([1, 5, None, 2, 4], 3)
    [5, 2, 4]
    >>> blocks([1, 5, None, 2, 4], 3, first=True)
    [1, None, 4]
    """
    step = math.ceil(len(values) / longest) if values else 1
    if step == 1:
        return values
    parts = [values[at : at + step] for at in range(0, len(values), step)]
    if first:
        return [part[0] for part in parts]
    return [max((value for value in part if value is not None), default=None) for part in parts]


def spread(values: list[Any], longest: int) -> list[Any]:
    """At most `longest` values at even distances, the first and the last among them.

    >>> spread(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= longest:
        return values
    return [values[round(at * (len(values) - 1) / (longest - 1))] for at in range(longest)]
