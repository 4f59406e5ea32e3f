"""The report on the terminal: complete, and readable in 80 columns."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from airserve.web.table import print_report
from airserve.web.words import SEEDS


def printed(report: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, file=StringIO(), color_system=None)
    print_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_it_fits_80_columns_and_says_all(report: dict[str, Any]) -> None:
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "Both promises are kept." in flat
    for service in report["services"] + report["runs"][0]["services"]:
        assert f"{service['measured_ms']:.1f}" in flat
        assert f"{service['predicted_interval_ms'][0]:.1f} to {service['predicted_interval_ms'][1]:.1f}" in flat
        assert service["why"] in flat
        assert f"{service['max_devices']} until the promise breaks" in flat
    assert "int8 on sensor alone" in flat
    assert "44.0" in flat  # the share that slice video used
    assert "- sensor: computes at speed 0.002 by padding" in flat
    assert report["shared"] in flat


def test_it_says_that_predictions_are_of_different_runs(report: dict[str, Any]) -> None:
    assert SEEDS in " ".join(printed(report).split())
    assert SEEDS not in " ".join(printed({"services": []}).split())


def test_bars_follow_one_another_and_add_up(report: dict[str, Any]) -> None:
    lines = [line for line in printed(report).splitlines() if " · " in line and set(line) & set("█░")]
    bars = [line[min(at for at, sign in enumerate(line) if sign in "█░") :] for line in lines]
    starts = [len(line) - len(bar) for line, bar in zip(lines, bars, strict=True)]
    first = starts[: len(report["services"][0]["waterfall"])]
    assert first == sorted(first)
    spans = report["services"][0]["waterfall"]
    widths = [sum(bar.count(sign) for sign in "█░") for bar in bars[: len(spans)]]
    whole = sum(span["slow_ms"] for span in spans)
    assert all(abs(width - 34 * span["slow_ms"] / whole) <= 1 for width, span in zip(widths, spans, strict=True))


def test_verdicts_and_the_guilty_span(verdicts: dict[str, Any]) -> None:
    flat = " ".join(printed(verdicts, 120).split())
    for words in ("✗ not kept", "≈ too close to call", "✓ kept", "… too few requests"):
        assert words in flat
    assert "queue · mast takes 14.0 ms more than predicted" in flat


def test_an_invalid_run_and_markup_in_names(report: dict[str, Any]) -> None:
    report["services"][0]["name"] = "[red]x[/red]"
    text = printed(report | {"valid": False, "invalid_why": "slots were late [bold]"})
    assert "✗ This run does not count: slots were late [bold]." in text
    assert "[red]x[/red]" in text
