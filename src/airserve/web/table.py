"""The report on the terminal: the same sentences and figures as the page, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from airserve.web import words
from airserve.web.sections import sum_ms
from airserve.web.view import Plain, view

STYLE = {"kept": "green", "broken": "bold white on red", "close": "yellow", "few": "dim"}
KIND = {"wait": "bright_black", "air": "blue", "transit": "magenta", "queue": "dark_orange", "compute": "green"}
LANE = 34  # columns of a text bar: what is left of 80 beside the figures


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the report to `console`: verdicts, placement, why, where the milliseconds go, slices, what is emulated.

    >>> from rich.console import Console
    >>> print_report({"name": "empty", "services": []}, Console(width=80))
    airserve report: empty
    <BLANKLINE>
    The report holds no service.
    """
    seen = view(report)
    facts = [seen["life"], words.plain(seen["duration_s"], " s"), f"seed {words.plain(seen['seed'])}", seen["made"]]
    known = [fact for fact in facts if fact and "–" not in fact]
    console.print(
        Text(": ".join(filter(None, ["airserve report", seen["name"]])), "bold"),
        Text(", ".join(known), "dim"),
        sep=" " if known else "",
    )
    console.print()
    _print_verdict(seen, console)
    if seen["services"]:
        console.print(_promises(seen["services"]))
    for run in seen["runs"]:
        console.print(Text(f"Further run: {run['name']}", "bold"))
        if not run["valid"]:
            console.print(Text(f"✗ This run does not count: {run['invalid_why']}", "bold red"))
        console.print(_promises(run["services"]))
    for service in seen["services"]:
        _print_service(service, console)
    for run in seen["runs"]:
        for service in run["services"]:
            _print_service(service, console, run["name"])
    if seen["slices"]:
        console.print(Text("Who has the PRBs: share of each direction, per cent", "bold"))
        console.print(_slices(seen["slices"]))
    _print_emulation(seen, console)


def _print_verdict(seen: Plain, console: Console) -> None:
    if not seen["valid"]:
        console.print(Text(f"✗ {seen['headline']}", "bold white on red"))
    else:
        console.print(Text(seen["headline"], "bold"))
    if seen["detail"]:
        console.print(Text(seen["detail"]))
        console.print()


def _table(*columns: str) -> Table:
    """A plain table; a column whose title starts with "#" holds figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    for title in columns:
        figure = title.startswith("#")
        table.add_column(
            title.removeprefix("#"), justify="right" if figure else "left", no_wrap=figure, overflow="fold"
        )
    return table


def _row(table: Table, cells: Iterable[str | Text], style: str = "") -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells), style=style)


def _promises(services: Iterable[Plain]) -> Padding:
    table = _table("service", "placed", "promise", "#predicted", "#measured", "verdict")
    for service in services:
        verdict = Text(f"{words.ICON[service['word']]} {service['word']}", STYLE[service["state"]])
        _row(
            table,
            [
                service["name"],
                service["placed"],
                words.promise(service).replace(" within", ""),
                f"{words.predicted(service)}\n{words.interval(service['predicted_interval_ms'])}",
                f"{words.measured(service)}\n{words.interval(service['measured_interval_ms'])}",
                verdict,
            ],
        )
    return _spaced(table)


def _spaced(table: Table) -> Padding:
    return Padding(table, (0, 0, 1, 0))


def _print_service(service: Plain, console: Console, run: str = "") -> None:
    title = f"{run}: {service['name']}" if run else service["name"]
    console.print(Text.assemble((f"{title}: ", "bold"), service["why"] or service["placed"]))
    if service["score"] is not None:
        console.print(Text(words.scored(service)))
    if service["max_devices"] is not None:
        limit = f"; the limit there: {service['binds']}" if service["binds"] else ""
        now = words.count(service["devices"])
        console.print(Text(f"{now} devices now, {words.count(service['max_devices'])} until the promise breaks{limit}"))
    for line in service["refused"]:
        console.print(Text(f"Refused: {line}"))
    if service["runners_up"]:
        console.print(_runners_up(service))
    if service["waterfall"]:
        console.print(_waterfall(service))


def _runners_up(service: Plain) -> Padding:
    table = _table("runner-up", f"#p{service['percentile']:g}", "why it lost")
    for one in service["runners_up"]:
        why = "; ".join(filter(None, [one["why"], one["gain"]]))
        _row(table, [one["label"], words.foreseen(one), why])
    return _spaced(table)


def _waterfall(service: Plain) -> Padding:
    """Spans as bars, one after the other: full up to the median, light up to the slow requests."""
    spans = service["waterfall"]
    keys = ("median_ms", "slow_ms")
    table = _table(
        "predicted, ms" if service["foretold"] else "where the ms go", "#median", "#slow", "#over", "█ median ░ slow"
    )
    whole = sum(one["slow_ms"] or 0 for one in spans)
    start = 0.0
    for at, one in enumerate(spans):
        guilty = at == service["guilty"]
        cells = [words.span(one), *(words.ms(one[key]) for key in keys), words.signed(words.over_plan(one))]
        _row(table, [*cells, _bar(one, start, whole)], "bold red" if guilty else "")
        start += one["slow_ms"] or 0
    sums = [sum_ms(one[key] for one in spans) for key in (*keys, "predicted_slow_ms")]
    over = None if sums[1] is None or sums[2] is None else sums[1] - sums[2]
    _row(table, ["sum", words.ms(sums[0]), words.ms(sums[1]), words.signed(over), ""], "bold")
    return _spaced(table)


def _bar(one: Plain, start: float, whole: float) -> Text:
    if not whole or one["slow_ms"] is None:
        return Text("")
    left, right = (round(LANE * at / whole) for at in (start, start + one["slow_ms"]))
    width = max(1, right - left)
    share = min(1.0, (one["median_ms"] or 0) / one["slow_ms"]) if one["slow_ms"] else 1.0
    full = round(width * share)
    return Text(" " * min(left, LANE - 1) + "█" * full + "░" * (width - full), KIND.get(one["kind"], ""))


def _slices(slices: Iterable[Plain]) -> Padding:
    table = _table("slice", "#dedicated", "#min", "#max", "#↑ plan", "#used", "#Mbit/s", "#↓ plan", "#used", "#Mbit/s")
    for one in slices:
        shares = [
            cell
            for way in ("up", "down")
            for cell in (
                words.per_cent(one[way]["predicted_share"]).removesuffix(" %"),
                words.per_cent(one[way]["share_used"]).removesuffix(" %"),
                words.plain(one[way]["mbps"]),
            )
        ]
        _row(table, [one["name"], *(words.plain(one[key]) for key in ("dedicated", "min", "max")), *shares])
    return _spaced(table)


def _print_emulation(seen: Plain, console: Console) -> None:
    if seen["emulation"]:
        console.print(Text("Emulated", "bold"))
        for line in seen["emulation"]:
            console.print(Padding(Text(f"- {line}"), (0, 0, 0, 1)))
    if seen["shared"]:
        console.print(Text.assemble(("Prediction and measurement share ", "bold"), f"{seen['shared']}."))
    if seen["not_shared"]:
        console.print(Text.assemble(("They do not share ", "bold"), f"{seen['not_shared']}."))
    if seen["services"]:
        console.print(Text(words.SEEDS))
    if seen["lateness_ms_p99"] is not None:
        console.print(Text(f"Release lateness, p99: {seen['lateness_ms_p99']:g} ms."))
