"""The report's plain HTML: every number as text and tables, to be read without JavaScript, by a reader of screens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from airserve.web import words
from airserve.web.view import Plain, spread

QUANTILES = (50, 90, 95, 99, 99.9)
ROWS = 60  # of a series in the plain tables; the data in the page has more


class Safe(str):
    """Text that is HTML already; all other text is escaped."""


def text(value: object) -> str:
    """
    >>> text("<b>"), text(Safe("<b>"))
    ('&lt;b&gt;', '<b>')
    """
    return value if isinstance(value, Safe) else escape(str(value))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Safe:
    """An HTML table. A column whose title starts with "#" holds figures.

    >>> table("Scores", ["name", "#value"], [["a<b", 0.5]])
    '<div class="scroll" tabindex="0" role="group" aria-label="Scores"><table><thead><tr><th>name</th><th class="n">value</th></tr></thead><tbody><tr><td>a&lt;b</td><td class="n">0.5</td></tr></tbody></table></div>'
    """  # noqa: E501
    figures = [title.startswith("#") for title in head]
    titles = "".join(_cell("th", title.removeprefix("#"), figure) for title, figure in zip(head, figures, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell("td", cell, figure) for cell, figure in zip(row, figures, strict=True)) + "</tr>"
        for row in rows
    )
    label = escape(caption, quote=True)
    return Safe(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{label}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, value: object, figure: bool) -> str:
    return f'<{tag} class="n">{text(value)}</{tag}>' if figure else f"<{tag}>{text(value)}</{tag}>"


def pill(service: Plain) -> Safe:
    """The verdict with icon and word; only "not kept" is solid (see the style sheet)."""
    return Safe(
        f'<span class="pill" data-state="{service["state"]}">{words.ICON[service["word"]]} {service["word"]}</span>'
    )


def tags(report: Plain) -> Safe:
    """Name, life, seed, length and time of the run."""
    parts = [
        report["name"],
        report["life"],
        f"{report['duration_s']:g} s" if report["duration_s"] is not None else "",
        f"seed {report['seed']}" if report["seed"] is not None else "",
        report["made"],
    ]
    return Safe("".join(f'<span class="tag">{text(part)}</span>' for part in parts if part))


def promises(services: Sequence[Plain]) -> Safe:
    """Promised, predicted, measured: one row a service."""
    return table(
        "Promised, predicted, measured",
        ["service", "verdict", "runs as", "promised", "#predicted", "#95 % interval", "#measured", "#95 % interval",
         "#p50", "#sent", "#not answered"],
        [
            [
                service["name"],
                pill(service),
                service["placed"],
                words.promise(service),
                words.predicted(service),
                words.interval(service["predicted_interval_ms"]),
                words.measured(service),
                words.interval(service["measured_interval_ms"]),
                words.ms(service["measured_p50_ms"]),
                words.count(service["sent"]),
                words.count(service["failed"]),
            ]
            for service in services
        ],
    )  # fmt: skip


def scores(services: Sequence[Plain]) -> Safe:
    """The score of each Model as it was and as it runs, on the same samples, against the drop that is allowed."""
    rows = []
    for service in services:
        if (score := service["score"]) is None:
            continue
        rows.append(
            [
                service["name"],
                " ".join(filter(None, [service["model"], service["variant"]])),
                score["metric"],
                words.score(score["before"]),
                words.score(score["value"]),
                words.drop(score["drop"]),
                words.drop_interval(score),
                words.allowed(service),
                words.count(score["n"]),
            ]
        )
    if not rows:
        return Safe('<p class="note">No service has a score.</p>')
    head = ["service", "model", "metric", "#before", "#now", "#drop", "#95 % interval", "#allowed", "#samples"]
    return table("Score before and after", head, rows)


def slices(report: Plain) -> Safe:
    """What each slice may have, what the plan expected and what it used, of the PRBs in each direction."""
    rows = [
        [
            one["name"],
            *(words.plain(one[key], " %") for key in ("dedicated", "min", "max")),
            *(
                cell
                for way in ("up", "down")
                for cell in (
                    words.per_cent(one[way]["predicted_share"]),
                    words.per_cent(one[way]["share_used"]),
                    words.plain(one[way]["mbps"]),
                )
            ),
        ]
        for one in report["slices"]
    ]
    head = [
        "slice",
        "#dedicated",
        "#min",
        "#max",
        "#↑ predicted",
        "#↑ used",
        "#↑ Mbit/s",
        "#↓ predicted",
        "#↓ used",
        "#↓ Mbit/s",
    ]
    return table("Shares of the PRBs", head, rows)


def runs(report: Plain) -> Safe:
    """Further measured runs, each with its own verdicts."""
    return Safe(
        "".join(
            f"<h3>{text(run['name'])}</h3>"
            + ("" if run["valid"] else f'<p class="bad">✗ This run does not count: {text(run["invalid_why"])}</p>')
            + promises(run["services"])
            for run in report["runs"]
        )
    )


def emulation(report: Plain) -> Safe:
    """What is emulated, and what prediction and measurement share."""
    items = "".join(f"<li>{text(line)}</li>" for line in report["emulation"]) or "<li>nothing</li>"
    facts = [
        ("Shared by prediction and measurement", report["shared"] or "not stated"),
        ("Not shared", report["not_shared"] or "not stated"),
        ("Release lateness, p99", words.plain(report["lateness_ms_p99"], " ms")),
    ]
    return Safe(
        f'<div class="two"><div><h3>Emulated</h3><ul>{items}</ul></div><dl>'
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts)
        + "</dl></div>"
    )


def figures(report: Plain) -> Safe:
    """All numbers of all services, as tables."""
    named = [("", service) for service in report["services"]]
    named += [(run["name"], service) for run in report["runs"] for service in run["services"]]
    note = f'<p class="note">{text(words.SEEDS)}</p>' if named else ""
    return Safe(note + "".join(_service(run, service) for run, service in named))


def _service(run: str, service: Plain) -> str:
    devices = f"{words.count(service['devices'])} devices at {words.plain(service['rate_hz'], ' Hz')}"
    facts = [
        ("runs as", service["placed"]),
        ("model", service["model"] or "none: sizes and a compute time are given"),
        ("asked by", f"{devices}, slice {service['slice'] or 'none'}"),
        ("promise", words.promise(service)),
        ("devices until it breaks", f"{words.count(service['max_devices'])}{_binds(service)}"),
        ("why", service["why"] or "not stated"),
        *(("refused", line) for line in service["refused"]),
    ]
    title = f"{run}: {service['name']}" if run else service["name"]
    tables: list[tuple[str, Safe]] = []
    if service["runners_up"]:
        tables.append(("Runners-up", _runners_up(service)))
    if service["waterfall"]:
        tables.append(
            ("Where the milliseconds go, ms" + (", predicted" if service["foretold"] else ""), _waterfall(service))
        )
    if service["worst"]:
        tables.append(("The worst request, ms", _worst(service)))
    if service["cdf"]["ms"]:
        tables.append(("Distribution, ms", _quantiles(service)))
    if service["capacity"]["devices"]:
        columns = [service["capacity"][key] for key in ("devices", "ms", "low", "high")]
        head = ["#devices", f"#p{service['percentile']:g} predicted", "#low", "#high"]
        tables.append(("How many devices fit, ms", _series("How many devices fit", head, columns)))
    if service["over_time"]["t_s"]:
        columns = [service["over_time"][key] for key in ("t_s", "p50_ms", "percentile_ms")]
        head = ["#s", "#p50", f"#p{service['percentile']:g}"]
        tables.append(("Latency over time, ms", _series("Latency over time", head, columns)))
    return (
        f"<article><h3>{text(title)} {pill(service)}</h3><dl>"
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts)
        + '</dl><div class="tables">'
        + "".join(f"<div><h4>{text(name)}</h4>{made}</div>" for name, made in tables)
        + "</div></article>"
    )


def _binds(service: Plain) -> str:
    return f"; the limit there: {service['binds']}" if service["binds"] else ""


def _waterfall(service: Plain) -> Safe:
    spans = service["waterfall"]
    keys = ("median_ms", "slow_ms", "predicted_slow_ms")
    rows: list[list[object]] = [
        [
            words.span(one),
            *(words.ms(one[key]) for key in keys),
            words.signed(words.over_plan(one)),
            "most over plan" if at == service["guilty"] else "",
        ]
        for at, one in enumerate(spans)
    ]
    sums = [sum_ms(one[key] for one in spans) for key in keys]
    over = None if sums[1] is None or sums[2] is None else sums[1] - sums[2]
    rows.append(["sum", *map(words.ms, sums), words.signed(over), ""])
    return table(
        "Where the milliseconds go", ["span", "#median", "#slow", "#slow, predicted", "#against plan", "remark"], rows
    )


def _worst(service: Plain) -> Safe:
    rows = [[words.span(one), words.ms(one["ms"])] for one in service["worst"]]
    return table(
        "The worst request", ["span", "#ms"], [*rows, ["sum", words.ms(sum_ms(o["ms"] for o in service["worst"]))]]
    )


def sum_ms(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part is not known.

    >>> sum_ms([1.0, 2.0]), sum_ms([1.0, None])
    (3.0, None)
    """
    known = list(values)
    return None if any(value is None for value in known) else sum(value for value in known if value is not None)


def _runners_up(service: Plain) -> Safe:
    head = ["plan", "#predicted, ms", "#95 % interval", "#cost", "#score", "why it lost", "gain of the chosen"]
    return table(
        "Runners-up",
        head,
        [
            [
                one["label"],
                words.foreseen(one),
                words.interval(one["predicted_interval_ms"]),
                words.plain(one["cost"]),
                words.score(one["score"]),
                one["why"],
                one["gain"],
            ]
            for one in service["runners_up"]
        ],
    )


def _quantiles(service: Plain) -> Safe:
    cdf = service["cdf"]
    columns = {name: cdf[name] for name in ("measured", "predicted") if any(v is not None for v in cdf[name])}
    rows = [
        [f"p{q:g}", *(words.ms(at_quantile(cdf["ms"], shares, q / 100)) for shares in columns.values())]
        for q in QUANTILES
    ]
    return table("Distribution", ["#percentile", *(f"#{name}" for name in columns)], rows)


def at_quantile(ms: Sequence[float], shares: Sequence[float | None], q: float) -> float | None:
    """The latency at which a distribution function, given at points, reaches `q`; None where it does not.

    >>> at_quantile([10, 20, 30], [0.2, 0.6, 1.0], 0.8)
    25.0
    """
    before: tuple[float, float] | None = None
    for at, share in zip(ms, shares, strict=False):
        if share is None:
            continue
        if share >= q:
            if before is None or share == before[1]:
                return float(at)
            return before[0] + (at - before[0]) * (q - before[1]) / (share - before[1])
        before = (at, share)
    return None


def _series(caption: str, head: Sequence[str], columns: Sequence[list[Any]]) -> Safe:
    longest = max(map(len, columns))
    full = [column + [None] * (longest - len(column)) for column in columns]
    short = [spread(column, ROWS) for column in full]
    rows = [[words.plain(row[0]), *map(words.ms, row[1:])] for row in zip(*short, strict=True)]
    return table(caption, head, rows)
