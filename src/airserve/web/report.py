"""The report: one HTML file that asks the network for nothing, with its scripts and styles pinned by hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from airserve.web import sections
from airserve.web.bundle import bundle, source
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
    style = source("uPlot.min.css") + source("report.css")
    plot = f"/*\n{source('uPlot.LICENSE')}*/\n{source('uPlot.iife.min.js')}"
    script = bundle("report")
    return Template(source("report.html")).substitute(
        policy=escape(policy(scripts=[plot, script], styles=[style]), quote=True),
        title=escape(f"{seen['name'] or 'airserve'}: report"),
        style=style,
        tags=sections.tags(seen),
        state=_state(seen),
        mark="" if seen["valid"] else "✗ ",
        headline=escape(seen["headline"]),
        detail=escape(seen["detail"]),
        promises=sections.promises(seen["services"]),
        scores=sections.scores(seen["services"]),
        slices=sections.slices(seen),
        runs_hidden="" if seen["runs"] else "hidden",
        slices_hidden="" if seen["slices"] else "hidden",
        runs=sections.runs(seen),
        emulation=sections.emulation(seen),
        figures=sections.figures(seen),
        data=as_data(seen),
        plot=plot,
        script=script,
    )


def save(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page of `render` to `path`, whose folder is made where it is missing, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(report), encoding="utf-8")
    return path


def policy(scripts: list[str], styles: list[str]) -> str:
    """A Content-Security-Policy (W3C CSP 3) that lets exactly these scripts and styles run, and no request leave.

    >>> policy(["a"], [])
    "default-src 'none'; script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='; style-src 'none'; base-uri 'none'; form-action 'none'"
    """  # noqa: E501

    def pinned(texts: list[str]) -> str:
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {pinned(scripts)}; style-src {pinned(styles)}; "
        "base-uri 'none'; form-action 'none'"
    )


def as_data(seen: Plain) -> str:
    """JSON that can stand in a script element: no "<" ends it early.

    >>> as_data({"name": "</script>"})
    '{"name":"\\\\u003c/script>"}'
    """
    return json.dumps(seen, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _state(seen: Plain) -> str:
    if not seen["valid"]:
        return "invalid"
    states = {service["state"] for service in seen["services"]}
    return next((state for state in ("broken", "close", "few") if state in states), "kept" if states else "few")
