"""A service's log: a JSON object a line, with what names a request in other logs too (its id, W3C Trace Context)."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson

from airserve.serve.guarding import Admitted
from airserve.serve.protocols import _http
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._observing import observed

requests = logging.getLogger("airserve.requests")
KEPT = ("method", "path", "status", "ms", "bytes", "request_id", "traceparent", "tenant")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; an exception's traceback is a field, so that a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        said.update({key: value for key in KEPT if (value := getattr(record, key, None)) not in (None, "")})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(said).decode()


def record(every_request: bool) -> None:
    """Log to standard error as JSON lines: what failed, and every request where that is wanted."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    requests.setLevel(logging.INFO if every_request else logging.WARNING)


def say(
    method: str,
    path: str,
    status: int | str,
    arrived_s: float,
    size: int,
    identity: bytes,
    traceparent: bytes,
    admitted: Admitted | None,
) -> None:
    """A line for a request that has been answered."""
    requests.info(
        "request",
        extra={
            "method": method,
            "path": path,
            "status": status,
            "ms": round(1e3 * (time.monotonic() - arrived_s), 3),
            "bytes": size,
            "request_id": identity.decode("latin-1")[:128],
            "traceparent": traceparent.decode("latin-1")[:64],
            "tenant": admitted.tenant.name if admitted else "",
        },
    )


def recorded(answer: _http.Answer, failed: _http.Failed) -> _http.Answer:
    """An `Answer` that logs each request when it is answered."""

    def tell(head: Head, status: int, response: bytes, arrived_s: float) -> None:
        header = head.headers
        names = header.get(b"x-request-id", b""), header.get(b"traceparent", b"")
        say(head.method, head.path, status, arrived_s, len(response), *names, head.admitted)

    return observed(answer, failed, tell)
