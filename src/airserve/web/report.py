"""The report: one HTML file that asks the network for nothing, with its scripts and styles pinned by hash."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from airserve.web import sections
from airserve.web.page import page, write
from airserve.web.view import Plain, view


def render(report: Mapping[str, Any]) -> str:
    """The report as one HTML page (docs/report.md says what its panels show and which keys it reads).

    Verdicts and all numbers stand in the HTML itself; scripts add cards and charts. Keys may be missing or None,
    unknown ones are left out, and all text is escaped.

    >>> page = render({"name": "empty", "services": []})
    >>> "The report holds no service." in page
    True
    """
    seen = view(report)
    return page(
        "report",
        seen["name"] or "airserve",
        sections.tags(seen),
        seen,
        {
            "state": _state(seen),
            "mark": "" if seen["valid"] else "✗ ",
            "headline": escape(seen["headline"]),
            "detail": escape(seen["detail"]),
            "promises": sections.promises(seen["services"]),
            "scores": sections.scores(seen["services"]),
            "slices": sections.slices(seen),
            "runs_hidden": "" if seen["runs"] else "hidden",
            "slices_hidden": "" if seen["slices"] else "hidden",
            "runs": sections.runs(seen),
            "emulation": sections.emulation(seen),
            "figures": sections.figures(seen),
        },
    )


def save(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page of `render` to `path`, whose folder is made where it is missing, and return the path."""
    return write(render(report), path)


def _state(seen: Plain) -> str:
    if not seen["valid"]:
        return "invalid"
    states = {service["state"] for service in seen["services"]}
    return next((state for state in ("broken", "close", "few") if state in states), "kept" if states else "few")
