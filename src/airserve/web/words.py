"""How a report speaks: verdicts, sentences and figures, the same on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNMEASURED = "not measured"
ICON = {
    "kept": "✓",
    "not kept": "✗",
    "too close to call": "≈",
    "too few requests": "…",
    UNMEASURED: "–",
}  # fmt: skip
STATE = {
    "kept": "kept",
    "not kept": "broken",
    "too close to call": "close",
    "too few requests": "few",
    UNMEASURED: "few",
}
ARROW = {"up": " ↑", "down": " ↓"}

SEEDS = (
    "Predicted figures come of runs of the twin with different seeds, and differ by chance: the predicted percentile "
    "pools several runs, spans, shares and distribution are of one more, and what is said with headroom is of the "
    "search's, so that it may lie below the prediction."
)

Plain = Mapping[str, Any]


def word(service: Plain) -> str:
    """The verdict in words; a service that nobody asked yet is "not measured".

    >>> word({"verdict": "kept"}), word({"verdict": None, "kept": False}), word({})
    ('kept', 'not kept', 'not measured')
    """
    if service.get("verdict") in STATE:
        return str(service["verdict"])
    if service.get("kept") is None or not service.get("sent", 1):
        return UNMEASURED
    return "kept" if service["kept"] else "not kept"


def ms(value: float | None, infinite: bool = False) -> str:
    """A latency in ms as text; `infinite` says that None stands for requests that were not answered.

    >>> ms(31.24), ms(248.4), ms(0.0432), ms(None), ms(None, infinite=True)
    ('31.2', '248', '0.043', '–', '∞')
    """
    if value is None:
        return "∞" if infinite else "–"
    short = round(value, 3)
    return f"{short:g}" if 0 < abs(short) < 0.1 else _tenths(value)


def _tenths(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def count(value: float | None) -> str:
    """A whole number with narrow spaces between thousands.

    >>> count(12345) == "12\u202f345"
    True
    """
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def plain(value: float | None, unit: str = "") -> str:
    """A number as short as it goes, with its unit.

    >>> plain(50.0, " ms"), plain(None)
    ('50 ms', '–')
    """
    return "–" if value is None else f"{value:g}{unit}"


def per_cent(share: float | None) -> str:
    """A share from 0 to 1 in per cent.

    >>> per_cent(0.034), per_cent(None)
    ('3.4 %', '–')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def score(value: float | None) -> str:
    """A score to three digits.

    >>> score(0.9211)
    '0.921'
    """
    return "–" if value is None else f"{value:.3f}"


def drop(value: float | None) -> str:
    """How far a score fell.

    >>> drop(0.025), drop(-0.01), drop(0.0)
    ('0.025', '−0.010', '0.000')
    """
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def drop_interval(score: Plain) -> str:
    """Both ends of the interval of a drop that was measured."""
    ends = score["drop_interval"]
    return "–" if not ends or None in ends else f"{drop(ends[0])} to {drop(ends[1])}"


def allowed(service: Plain) -> str:
    """The drop that a promise allows, and whether it was kept.

    >>> allowed({"max_accuracy_drop": 0.01, "score": {"verdict": "not kept"}})
    '0.01 ✗ more than allowed'
    """
    if service["max_accuracy_drop"] is None:
        return "–"
    said = {"kept": " ✓ within", "not kept": " ✗ more than allowed", "too close to call": " ≈ too close to call"}
    return plain(service["max_accuracy_drop"]) + said.get(service["score"]["verdict"], "")


def scored(service: Plain) -> str:
    """The score now and before, on the same samples, and the drop against what is allowed.

    >>> score = {"metric": "accuracy", "before": 0.972, "value": 0.97, "n": 360, "drop": 0.002, "verdict": "kept"}
    >>> scored({"max_accuracy_drop": 0.01, "score": score | {"drop_interval": [0.0, 0.006]}})
    'accuracy 0.972 before, 0.970 now on the same 360 samples; drop 0.002 (0.000 to 0.006), allowed 0.01 ✓ within'
    """
    found = service["score"]
    if found["before"] is None:
        return f"{found['metric']} {score(found['value'])} on {count(found['n'])} samples"
    text = f"{found['metric']} {score(found['before'])} before, {score(found['value'])} now"
    fell = f"{drop(found['drop'])}" + (f" ({drop_interval(found)})" if found["drop_interval"] else "")
    text += f" on the same {count(found['n'])} samples; drop {fell}"
    return text if service["max_accuracy_drop"] is None else f"{text}, allowed {allowed(service)}"


def signed(value: float | None) -> str:
    """A difference in ms with its sign.

    >>> signed(5.63), signed(-0.2), signed(0.01), signed(None)
    ('+5.6', '−0.2', '+0.0', '–')
    """
    if value is None:
        return "–"
    return f"{'−' if value <= -0.05 else '+'}{_tenths(abs(value))}"


def interval(low_high: Sequence[float | None] | None) -> str:
    """Both ends of an interval in ms.

    >>> interval([30.1, 32.4]), interval([30.1, None]), interval(None)
    ('30.1 to 32.4', '30.1 to ∞', '–')
    """
    if not low_high or len(low_high) != 2:
        return "–"
    return f"{ms(low_high[0], True)} to {ms(low_high[1], True)}"


def promise(service: Plain) -> str:
    """
    >>> promise({"percentile": 99.0, "promise_ms": 50.0})
    'p99 within 50 ms'
    """
    if service["promise_ms"] is None:
        return "none"
    return f"p{service['percentile']:g} within {service['promise_ms']:g} ms"


def predicted(service: Plain) -> str:
    """The predicted percentile; where there is an interval but no value, it is infinite."""
    return ms(service["predicted_ms"], infinite=bool(service["predicted_interval_ms"]))


def foreseen(runner_up: Plain) -> str:
    """The percentile predicted for a plan that lost; a closed-form bound says only that it is no lower.

    >>> foreseen({"predicted_ms": 88.0, "predicted_interval_ms": None, "judged_by": "bound"})
    '≥ 88.0'
    """
    return ("≥ " if runner_up["judged_by"] == "bound" else "") + predicted(runner_up)


def measured(service: Plain) -> str:
    """The measured percentile; where requests were sent and there is no value, it is infinite."""
    return ms(service["measured_ms"], infinite=bool(service["sent"]))


def placed(one: Plain) -> str:
    """Where a service runs, in words.

    >>> placed({"variant": "int8", "cut": "relu_3", "encoding": "int8", "sites": ["camera", "mast"]})
    'int8 cut at relu_3 (int8), camera + mast'
    >>> placed({"variant": "fp32", "cut": "input", "encoding": "jpeg", "sites": ["mast"]})
    'fp32 on mast, the input sent as jpeg'
    >>> placed({"variant": "int8", "cut": "none", "encoding": "", "sites": ["sensor"]})
    'int8 on sensor alone'
    """
    sites = " + ".join(map(str, one["sites"]))
    if not one["variant"] and not sites:
        return "nowhere yet"
    if not one["cut"]:
        return f"{one['variant']} on {sites}".strip()
    if one["cut"] == "none":
        return f"{one['variant']} on {sites} alone"
    if one["cut"] == "input":
        return f"{one['variant']} on {sites}, the input sent" + (f" as {one['encoding']}" if one["encoding"] else "")
    return f"{one['variant']} cut at {one['cut']}" + (f" ({one['encoding']})" if one["encoding"] else "") + f", {sites}"


def span(one: Plain) -> str:
    """
    >>> span({"kind": "air", "direction": "up", "site": "hall"})
    'air ↑ · hall'
    """
    return str(one["kind"]) + ARROW.get(one["direction"], "") + (f" · {one['site']}" if one["site"] else "")


def over_plan(one: Plain) -> float | None:
    """Milliseconds that a span of the slow requests takes more than predicted."""
    if one["slow_ms"] is None or one["predicted_slow_ms"] is None:
        return None
    return float(one["slow_ms"] - one["predicted_slow_ms"])


def guilty(service: Plain) -> int | None:
    """Index of the span that costs most against the plan, at least 1 ms and 3 % of the promise; None where none does.

    Where nothing was predicted and the promise is not kept, it is the longest span of the slow requests.
    """
    spans = service["waterfall"]
    over = [(value, at) for at, one in enumerate(spans) if (value := over_plan(one)) is not None]
    if over:
        most, at = max(over)
        return at if most >= max(1.0, 0.03 * (service["promise_ms"] or 0)) else None
    slow = [(one["slow_ms"], at) for at, one in enumerate(spans) if one["slow_ms"] is not None]
    return max(slow)[1] if slow and service["word"] == "not kept" else None


def sentence(report: Plain) -> tuple[str, str]:
    """The verdict on all promises, and what lies behind it.

    >>> sentence({"services": [], "valid": True, "plan": {"limits": [], "stated": []}})
    ('The report holds no service.', '')
    """
    services, limits, stated = report["services"], report["plan"]["limits"], report["plan"]["stated"]
    if not services and not stated:
        return "The report holds no service.", " ".join(map(str, limits))
    lines = [_line(service) for service in services[:6]] + [_foretold(one) for one in stated]
    lines += [str(limit) for limit in limits]
    if len(services) > 6:
        lines.append(f"{len(services) - 6} more below.")
    if not report["valid"]:
        why = report["invalid_why"].rstrip(". ") or "no reason was given"
        return f"This run does not count: {why}.", " ".join(["What it measured all the same:", *lines])
    return _headline(services, stated), " ".join(lines)


def _headline(services: Sequence[Plain], stated: Sequence[Plain]) -> str:
    of = {name: [service["name"] for service in services if service["word"] == name] for name in STATE}
    total, broken, kept = len(services), of["not kept"], len(of["kept"])
    if len(of[UNMEASURED]) == total:
        good = sum(service["kept"] is True for service in (*services, *stated))
        total += len(stated)
        return f"Nothing is measured yet; the plan is predicted to keep {good} of {total} promise{'s' * (total > 1)}."
    if kept == total:
        return {1: "The promise is kept.", 2: "Both promises are kept."}.get(total, f"All {total} promises are kept.")
    if len(broken) == 1:
        return f"{broken[0]}: promise not kept."
    if broken:
        return f"{len(broken)} of {total} promises not kept: {', '.join(broken)}."
    return f"No promise is broken; {kept} of {total} {'is' if kept == 1 else 'are'} kept."


def _foretold(service: Plain) -> str:
    promised = plain(service["promise_ms"], " ms")
    return f"{service['name']}: p{service['percentile']:g} predicted {predicted(service)} of {promised} promised."


def _line(service: Plain) -> str:
    """One service in one sentence."""
    name, verdict, promised = service["name"], service["word"], plain(service["promise_ms"], " ms")
    mark = f"p{service['percentile']:g}"
    if verdict == UNMEASURED:
        return _foretold(service)
    text = f"{name}: {mark} {measured(service)} of {promised} promised"
    latency = service["latency_verdict"] or verdict
    if latency not in ("kept", "not kept"):
        text += f", {latency}"
    if service["score"] and service["score"]["verdict"] in ("not kept", "too close to call"):
        text += f"; {scored(service)}"
    if latency != "not kept":
        return f"{text}."
    if service["failed"]:
        text += f"; {count(service['failed'])} of {count(service['sent'])} requests were not answered"
    if service["guilty"] is not None:
        one = service["waterfall"][service["guilty"]]
        extra = over_plan(one)
        most = f"takes {ms(extra)} ms more than predicted" if extra and extra >= 1 else f"takes {ms(one['slow_ms'])} ms"
        text += f"; {span(one)} {most}"
    return f"{text}."
