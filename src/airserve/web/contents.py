"""What a report says, as plain data: promised, predicted and measured for every Service, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airserve.contract import Deployment, Promise, Readings, Word, judge, percentile, to_plain
from airserve.errors import UserError
from airserve.model import Array
from airserve.network import twin
from airserve.network.outcome import Outcome
from airserve.place.description import Factory, Service
from airserve.place.plan import Candidate, Choice, Plan, RunnerUp, Stated
from airserve.place.planning import flows
from airserve.place.planning import load as load_plan
from airserve.serve.comparing import Score, judge_drop
from airserve.serve.driving import FACTORY, PLAN, Drive, of_plan

PREDICTION_SEED = 1_000_003  # the waterfall's twin run: channel and arrivals that no measured run has
AGAIN = "start it again: airserve up FILE"
SHARED = "the MAC and the radio traces' statistics"
NOT_SHARED = "engine, sockets, processes, arrivals and the seeds of the channel"


def contents(
    name: str, factory: Factory, plan: Plan, drive: Drive | None = None, runs: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The report of a plan, and of the run that measured it where there is one; `runs` are further reports.

    Values that do not exist (nothing measured; a percentile of unanswered requests) are None.
    """
    seconds = drive.seconds if drive else 30.0
    outcome = twin.run(factory.network, flows(factory, plan.choices), until_s=seconds, seed=PREDICTION_SEED)
    choices = {choice.service: choice for choice in plan.choices}
    services = [
        _service(service, choices[service.name], outcome.readings[service.name], drive)
        for service in factory.services
        if service.name in choices
    ]
    return {
        "name": name,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "life": "emulator (byte-level)" if drive else "twin",
        "valid": drive.valid if drive else True,
        "invalid_why": drive.invalid_why if drive else "",
        "lateness_ms_p99": _number(drive.lateness_ms_p99) if drive else None,
        "duration_s": seconds,
        "seed": drive.seed if drive else None,
        "plan": {
            "seconds": round(plan.seconds, 2),
            "headroom": plan.headroom,
            "limits": list(plan.limits),
            "stated": [_stated(one) for one in plan.stated],
        },
        "emulation": [*emulation(factory, plan), *_obtained(drive)]
        if drive
        else ["everything: no packet was sent, the twin computed this"],
        "shared": SHARED,
        "not_shared": NOT_SHARED,
        "services": services,
        "slices": _slices(factory, outcome, drive),
        "runs": list(runs),
    }


def keep(run_dir: Path, factory: Factory, plan: Plan) -> None:
    """Put what a deployment was made from beside it, so that its runs can be reported later."""
    (run_dir / FACTORY).write_text(factory.model_dump_json(), encoding="utf-8")
    (run_dir / PLAN).write_text(json.dumps(to_plain(plan)), encoding="utf-8")


def of_run(run_dir: Path) -> dict[str, Any]:
    """The report of the last run of a deployment's plan. Raises `UserError` where it has none."""
    if not (run_dir / FACTORY).exists():
        raise UserError(f"{run_dir.name} was never brought up; airserve up FILE, then airserve drive {run_dir.name}.")
    try:
        factory = Factory.model_validate_json((run_dir / FACTORY).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_dir / FACTORY} is not a saved description ({str(error).splitlines()[0][:80]}); {AGAIN}."
        ) from None
    return contents(run_dir.name, factory, load_plan(run_dir / PLAN, AGAIN), of_plan(run_dir))


def measured(deployment: Deployment, drive: Drive, plan: Plan | None) -> dict[str, Any]:
    """What a run measured; of the plan, where one was kept, only what it knew of the scores is held against it."""
    chosen = {choice.service: choice.chosen for choice in plan.choices} if plan else {}
    return {
        "name": deployment.name,
        "valid": drive.valid,
        "invalid_why": drive.invalid_why,
        "lateness_ms_p99": _number(drive.lateness_ms_p99),
        "duration_s": drive.seconds,
        "seed": drive.seed,
        "services": [
            {
                "name": asker.service,
                "promise_ms": asker.promise.latency_ms,
                "percentile": asker.promise.percentile,
                "max_accuracy_drop": asker.promise.max_accuracy_drop,
                **_measured(drive.readings[asker.service], asker.promise, drive, chosen.get(asker.service)),
            }
            for asker in deployment.askers
        ],
        "slices": [{"name": name, **to_plain(ways)} for name, ways in drive.usage.items()],
    }


def emulation(factory: Factory, plan: Plan) -> list[str]:
    """What stands in for the real thing, one line each."""
    cell = factory.network.cell
    lines = []
    if any(choice.chosen.site for choice in plan.choices):
        lines.append(
            f"the air of {cell.name}: bytes of TCP connections, held and released by the MAC in real time "
            "(byte-level emulation; its radio is a trace, no antenna sends)"
        )
    for site in factory.network.sites:
        used = [choice for choice in plan.choices if site.name in choice.chosen.sites]
        if not used:
            continue
        if site.speed < 1:
            lines.append(f"{site.name}: this machine, slowed to {site.speed:g} of its speed by padding")
        if site.delay_ms:
            lines.append(f"{site.name}: {site.delay_ms:g} ms of transit each way, added by the relay")
        if site.kind != "device":
            lines.append(f"{site.name}: {site.cores} workers that share this machine's cores with all the rest")
    if factory.network.rules or any(site.rate_mbps for site in factory.network.sites):
        lines.append("rules of the user-plane function, rates of links: in the prediction alone, the relay has none")
    if other := [one.name for one in factory.services if one.transport != "stream"]:
        lines.append(f"transport of {', '.join(other)}: in the prediction alone, the relay carries streams")
    return lines


def _obtained(drive: Drive) -> list[str]:
    """On what scheduling the run was measured."""
    return [f"{who}: {what}" for who, what in drive.scheduling.items()]


def _service(service: Service, choice: Choice, predicted: Readings, drive: Drive | None) -> dict[str, Any]:
    chosen, promise = choice.chosen, choice.promise
    said: dict[str, Any] = {
        "name": service.name,
        "model": chosen.reference.split("/")[0],
        "variant": chosen.variant,
        "cut": chosen.cut,
        "encoding": chosen.encoding,
        "sites": list(chosen.sites),
        "slice": service.slice,
        "devices": service.devices,
        "rate_hz": service.rate_hz,
        "promise_ms": promise.latency_ms,
        "percentile": promise.percentile,
        "max_accuracy_drop": promise.max_accuracy_drop,
        "predicted_ms": _number(choice.predicted_ms),
        "predicted_interval_ms": _pair(choice.predicted_interval_ms),
        "cost": _number(choice.cost),
        "why": choice.why + (_against_simple(choice.predicted_ms, choice) if len(chosen.sites) > 1 else ""),
        "refused": list(choice.refused),
        "runners_up": [_runner_up(one, choice) for one in choice.runners_up],
        "max_devices": choice.max_devices,
        "binds": choice.binds,
        "capacity": {
            key: [_number(row[i]) for row in choice.capacity] for i, key in enumerate(("devices", "ms", "low", "high"))
        },
    }
    measured = drive.readings.get(service.name) if drive else None
    said |= _measured(measured, promise, drive, chosen) if measured is not None and drive else _unmeasured(choice)
    said["slow_ranks"] = list(_ranks(promise))
    said["waterfall"] = waterfall(predicted, measured, promise)
    said["cdf"] = _cdf(predicted, measured)
    return said


def _stated(one: Stated) -> dict[str, Any]:
    """The promise of a service that states its sizes, which the twin alone carries."""
    return {
        "name": one.service,
        "promise_ms": one.promise.latency_ms,
        "percentile": one.promise.percentile,
        "predicted_ms": _number(one.predicted_ms),
        "predicted_interval_ms": _pair(one.predicted_interval_ms),
        "kept": one.kept,
    }


def _measured(measured: Readings, promise: Promise, drive: Drive, chosen: Candidate | None) -> dict[str, Any]:
    latency = measured.latency_ms
    score = _score(promise, chosen, drive.scores.get(measured.service))
    judged = judge(latency, measured.sent_s, promise, np.random.default_rng(drive.seed))
    answered = measured.answered
    rows = np.flatnonzero(np.isfinite(latency))
    worst = int(rows[np.argmax(latency[rows])]) if len(rows) else None
    said = {
        "measured_ms": _number(judged.value_ms),
        "measured_interval_ms": _pair(judged.interval_ms),
        "measured_p50_ms": _number(percentile(latency, 50)) if len(latency) else None,
        "sent": len(latency),
        "answered": answered,
        "failed": len(latency) - answered,
        "verdict": (verdict := _both(judged.word, score["verdict"])),
        "kept": verdict == "kept",
        "latency_verdict": judged.word,
        "score": score,
        "over_time": _over_time(measured, promise),
        "worst": []
        if worst is None
        else [
            {"kind": span.kind, "direction": span.direction, "site": span.site, "ms": _number(ms)}
            for span, ms in zip(measured.spans, measured.ms[worst], strict=True)
        ],
    }
    return said


def _score(promise: Promise, chosen: Candidate | None, measured: Score | None = None) -> dict[str, Any]:
    """The scores before and now, on the same samples: those of the run where there is one, else those planned with."""
    planned = _planned(chosen) if chosen else None
    score = measured or planned
    return {
        "metric": score.metric if score else "",
        "value": _number(score.value if score else None),
        "n": score.n if score else None,
        "before": _number(score.before if score else None),
        "drop": _number(score.drop if score else None),
        "drop_interval": _pair(score.drop_interval) if score and score.drop_interval else None,
        "planned_value": _number(planned.value if planned else None),
        "planned_drop": _number(planned.drop if planned else None),
        "planned_n": planned.n if planned else None,
        "verdict": judge_drop(promise.max_accuracy_drop, planned.drop if planned else None, measured),
    }


def _planned(chosen: Candidate) -> Score | None:
    return None if chosen.score is None else Score(chosen.metric, chosen.score, chosen.scored, chosen.before)


def _both(latency: Word, accuracy: Word | None) -> Word:
    """The verdict on a promise of both: the worse of the two."""
    order: tuple[Word, ...] = ("not kept", "too few requests", "too close to call", "kept")
    return min(latency, accuracy or "kept", key=order.index)


def _unmeasured(choice: Choice) -> dict[str, Any]:
    empty = ("measured_ms", "measured_interval_ms", "measured_p50_ms", "sent", "answered", "failed", "verdict")
    score = _score(choice.promise, choice.chosen)
    return {**dict.fromkeys(empty), "kept": choice.kept, "score": score, "over_time": None, "worst": []}


def _against_simple(cut_ms: float, choice: Choice) -> str:
    """A cut has to beat the better of the device alone and sending the input; by how much it does, or does not."""
    known = [(choice.predicted_ms, choice.chosen), *((one.predicted_ms, one.candidate) for one in choice.runners_up)]
    simple = [
        (ms, one) for ms, one in known
        if one.cut in ("none", "input") and np.isfinite(ms) and _right_enough(one, choice.promise)
    ]  # fmt: skip
    if not simple or not np.isfinite(cut_ms):
        return ""
    ms, best = min(simple, key=lambda pair: pair[0])
    return f"; {abs(cut_ms - ms):.3g} ms {'less' if cut_ms < ms else 'more'} than the best without a cut ({best.label})"


def _right_enough(one: Candidate, promise: Promise) -> bool:
    if promise.max_accuracy_drop is None or one.score is None or one.before is None:
        return True
    return one.before - one.score <= promise.max_accuracy_drop


def _runner_up(one: RunnerUp, choice: Choice) -> dict[str, Any]:
    candidate = one.candidate
    cut = candidate.cut not in ("none", "input")
    return {
        "label": candidate.label,
        "variant": candidate.variant,
        "cut": candidate.cut,
        "encoding": candidate.encoding,
        "sites": list(candidate.sites),
        "predicted_ms": _number(one.predicted_ms),
        "predicted_interval_ms": _pair(one.predicted_interval_ms),
        "judged_by": one.judged_by,
        "cost": _number(one.cost),
        "score": candidate.score,
        "why": one.why + (_against_simple(one.predicted_ms, choice) if cut else ""),
        "gain_ms": _number(one.gain_ms),
    }


def _ranks(promise: Promise) -> tuple[float, float]:
    """The ranks of the requests that a percentile is about, in per cent."""
    half = (100 - promise.percentile) / 2
    return promise.percentile - half, promise.percentile + half


def waterfall(predicted: Readings, measured: Readings | None, promise: Promise) -> list[dict[str, Any]]:
    """Mean spans of the median requests and of the slow ones: percentiles of spans do not add, whole requests do."""
    columns = {
        "predicted_median_ms": _mean_spans(predicted, 45, 55),
        "predicted_slow_ms": _mean_spans(predicted, *_ranks(promise)),
    }
    if measured is not None:
        columns |= {"median_ms": _mean_spans(measured, 45, 55), "slow_ms": _mean_spans(measured, *_ranks(promise))}
    rows = []
    for span in (measured or predicted).spans:
        row: dict[str, Any] = {"kind": span.kind, "direction": span.direction, "site": span.site}
        rows.append(row | {key: values.get(span) for key, values in columns.items()})
    return rows


def _mean_spans(readings: Readings, low: float, high: float) -> dict[Any, float | None]:
    latency = readings.latency_ms
    order = np.argsort(latency, kind="stable")
    first, last = int(np.floor(len(order) * low / 100)), int(np.ceil(len(order) * high / 100))
    rows = order[first : max(last, first + 1)]
    rows = rows[np.isfinite(latency[rows])]
    means: Array = readings.ms[rows].mean(axis=0) if len(rows) else np.full(len(readings.spans), np.nan)
    return {span: _number(value) for span, value in zip(readings.spans, means, strict=True)}


def _over_time(measured: Readings, promise: Promise, window_s: float = 5.0) -> dict[str, list[float | None]]:
    latency, sent = measured.latency_ms, measured.sent_s
    ends = np.arange(1.0, np.ceil(sent.max()) + 1) if len(sent) else np.array([])
    inside = [latency[(sent >= end - window_s) & (sent < end)] for end in ends]
    return {
        "window_s": [window_s],
        "t_s": [float(end) for end in ends],
        "percentile_ms": [_number(percentile(one, promise.percentile)) if len(one) else None for one in inside],
        "p50_ms": [_number(percentile(one, 50)) if len(one) else None for one in inside],
    }


def _cdf(predicted: Readings, measured: Readings | None) -> dict[str, Any]:
    """Shares of requests at or below a latency, at 200 latencies."""
    known = [one.latency_ms[np.isfinite(one.latency_ms)] for one in (predicted, measured) if one is not None]
    top = max((float(one.max()) for one in known if len(one)), default=1.0)
    grid = np.linspace(0, top * 1.02, 200)
    said: dict[str, Any] = {"ms": [_number(x) for x in grid], "measured": None}
    for key, one in (("predicted", predicted), ("measured", measured)):
        if one is not None and len(one.sent_s):
            at = np.searchsorted(np.sort(one.latency_ms), grid, side="right") / len(one.sent_s)
            said[key] = [round(float(x), 6) for x in at]
    return said


def _slices(factory: Factory, outcome: Outcome, drive: Drive | None) -> list[dict[str, Any]]:
    rows = []
    for index, one in enumerate(factory.network.slices):
        row: dict[str, Any] = {"name": one.name, "dedicated": one.dedicated, "min": one.min, "max": one.max}
        for way in ("up", "down"):
            twins = outcome.slices[index][way]
            used = to_plain(drive.usage[one.name][way]) if drive and one.name in drive.usage else twins
            row[way] = {**used, "mbps": _number(used["mbps"]), "predicted_share": twins["share_used"]}
        rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 3)


def _pair(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]
