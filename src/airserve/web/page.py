"""What each of our pages is: one HTML file that asks the network for nothing, scripts and styles pinned by hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from airserve.errors import UserError
from airserve.web.bundle import bundle, source


class PageError(UserError):
    """A page that cannot be written; one sentence for the user."""


def page(kind: str, name: str, tags: str, seen: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """The page of a kind, "report" or "simulation": static/KIND.html filled with `parts`, static/KIND.js with `seen`.

    `tags` and `parts` are HTML; `name`, of what the page is about, is text. `seen` stands in the page as JSON.
    """
    style = source("uPlot.min.css") + source("report.css")
    plot = f"/*\n{source('uPlot.LICENSE')}*/\n{source('uPlot.iife.min.js')}"
    script = bundle(kind)
    return Template(source("page.html")).substitute(
        policy=escape(policy(scripts=[plot, script], styles=[style]), quote=True),
        title=escape(f"{name}: {kind}"),
        style=style,
        kind=kind,
        tags=tags,
        body=Template(source(f"{kind}.html")).substitute(parts),
        data=as_data(seen),
        plot=plot,
        script=script,
    )


def write(html: str, path: Path) -> Path:
    """Write a page to `path`, whose folder is made where it is missing, and return the path. Raises `PageError`."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PageError(f"the page {path} cannot be written ({why}); name a file, such as page.html.") from None
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


def as_data(seen: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: no "<" ends it early.

    >>> as_data({"name": "</script>"})
    '{"name":"\\\\u003c/script>"}'
    """
    return json.dumps(seen, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
