"""What of a request and of its answer goes on through a gateway, and what is of one connection alone."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from airserve.contract import Route
from airserve.serve.protocols._head import Head
from airserve.serve.routing import time_left

# Of one connection alone (RFC 9110 7.6.1), or written anew for each site.
OWN = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect",
     b"host", b"content-length", b"x-request-timeout-ms")
)  # fmt: skip


def passed_on(head: Head, without: frozenset[bytes] = OWN) -> bytes:
    """The lines of a request's header that go on to a site."""
    without |= _named(head.headers.get(b"connection", b""))
    return b"".join(name + b": " + value + b"\r\n" for name, value in head.headers.items() if name not in without)


def written(method: str, target: str, route: Route, passed: bytes, body: bytes, left_ms: int | None) -> bytes:
    """A request as it goes to a site; `left_ms` is the time that is left for it, where the client named one."""
    left = time_left(left_ms) if left_ms is not None else ""
    host = f"[{route.host}]" if ":" in route.host else route.host
    first = f"{method} {target} HTTP/1.1\r\nHost: {host}:{route.port}\r\n{left}"
    return b"".join((first.encode("latin-1"), passed, b"Content-Length: ", str(len(body)).encode(), b"\r\n\r\n", body))


def passed_back(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """A site's answer as it goes to the client."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    head = f"HTTP/1.1 {status} {phrase}\r\n{lines_back(headers)}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def lines_back(headers: Mapping[str, str], without: frozenset[bytes] = OWN) -> str:
    """The lines of an answer's header that go on to the client."""
    if "connection" in headers:
        without |= _named(headers["connection"].encode("latin-1"))
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name.encode() not in without)


def _named(connection: bytes) -> frozenset[bytes]:
    """The fields that a Connection field names: they are of that connection alone too."""
    return frozenset(one.strip().lower() for one in connection.split(b","))
