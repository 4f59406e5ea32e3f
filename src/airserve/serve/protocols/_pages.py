"""What people read: the routes at /docs and /openapi.json; a Starlette application, loaded when it is first asked for.

Both are answered in the same connections and under the same limits as what the protocols answer.
"""

from __future__ import annotations

import asyncio
import html
from functools import cache
from typing import Any

from airserve import wire
from airserve.serve.protocols._entry import Respond
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._openapi import document
from airserve.serve.service import Service

PATHS = ("/docs", "/openapi.json")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


@cache
def application() -> Any:
    """The Starlette application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    described = document()

    async def docs(_: Request) -> Response:
        return HTMLResponse(page(described))

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    return Starlette(routes=[Route("/docs", docs), Route("/openapi.json", openapi)])


def page(described: dict[str, Any]) -> str:
    """The document as one page that loads nothing from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td></tr>"
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    )
    info = described["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{info["title"]}</title><style>{STYLE}</style>'
        f"<h1>{info['title']} {info['version']}</h1><p>{html.escape(info['description'])}</p>"
        f'<p>In full: <a href="/openapi.json">openapi.json</a>, OpenAPI 3.1.</p><table>{rows}</table></html>'
    )


def route(_service: Service, head: Head) -> Respond:
    """Answers requests with this header by the application."""
    return lambda body, arrived_s: call(head, body)


async def call(head: Head, body: bytes) -> bytes:
    """The application's answer to a request (ASGI 3.0), as a whole HTTP response."""
    app = await asyncio.to_thread(application)  # the first time it is imported, which takes a while
    path = head.path.rstrip("/")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": head.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": head.query,
        "root_path": "",
        "headers": list(head.headers.items()),
    }
    status, lines, parts = 500, "", []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, lines
        if message["type"] == "http.response.start":
            status = message["status"]
            kept = [(k, v) for k, v in message["headers"] if k.lower() not in (b"content-length", b"content-type")]
            media.extend(v.decode("latin-1") for k, v in message["headers"] if k.lower() == b"content-type")
            lines = "".join(f"{k.decode('latin-1')}: {v.decode('latin-1')}\r\n" for k, v in kept)
        else:
            parts.append(message.get("body", b""))

    media: list[str] = []
    await app(scope, receive, send)
    return wire.http_response(status, b"".join(parts), media=media[-1] if media else "text/plain", extra=lines)
