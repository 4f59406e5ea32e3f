"""What a header leads to: who asks, what answers, and what each request must pass first. Worked out once a header."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import final
from urllib.parse import unquote

from airserve.serve.guarding import Admitted, Allowance, Forbidden, Guard, TooMany, Unauthorized
from airserve.serve.protocols import _http
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._pending import Pending
from airserve.serve.protocols._streaming import Stream
from airserve.serve.service import Service

Answered = bytes | Stream
Given = bytes | Pending | Awaitable[Answered]
Respond = Callable[[bytes, float], Given]
Ask = Callable[[bytes, int, int, float], Given | None]  # a body in data[a:b]; None: not what it can answer
Route = Callable[[Service, Head], Respond]  # what answers requests with this header
OPEN = frozenset(("/v2/health/live", "/v2/health/ready"))  # to whoever asks
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class NotFound(LookupError):
    """A path that the protocol does not have."""


class NotAllowed(LookupError):
    """A method that the path does not have; `allow` are those that it has, as the header of that name says them."""

    def __init__(self, head: Head, methods: Collection[str]) -> None:
        super().__init__(f"{head.path[:80]} takes {' or '.join(methods)}, not {head.method}.")
        self.allow = ", ".join((*methods, "HEAD") if "GET" in methods else methods)


@final
class Entry:
    """The way of requests with one header. Raises `Unauthorized`, `Forbidden`, and what its route raises."""

    __slots__ = (
        "_admitted", "_allowance", "_echo", "_failed", "_inner", "_respond", "_service", "answer", "echoes",
        "generation", "until_s",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        guard: Guard | None,
        head: Head,
        find: Callable[[Head], Route],
        failed: _http.Failed,
    ) -> None:
        self._service, self.generation = service, service.generation
        self.until_s = math.inf
        self._failed = failed
        self._allowance: Allowance | None = None
        self._admitted: Admitted | None = None
        if guard is not None and head.path not in OPEN:
            self._admitted = admit(guard, head)
            self.until_s = self._admitted.until_s
            _permit(self._admitted, head.path)
        respond = self._respond = find(head)(service, head)
        if guard is not None and self._admitted is not None:
            self._allowance = guard.allowance(self._admitted, service.worker)
            respond = self._limited
        self._inner = respond
        identity = head.headers.get(b"x-request-id", b"")
        self._echo = b"\r\nX-Request-Id: " + identity if REQUEST_ID.fullmatch(identity) else b""
        self.echoes = bool(self._echo)
        self.answer: Respond = self._echoed if self._echo else respond  # to a request with this header

    def quick(self, data: bytes, a: int, b: int, arrived_s: float) -> Given | None:
        """As `answer`, to the body in data[a:b], where nothing is echoed; None once this entry holds no longer."""
        if self.generation != self._service.generation or arrived_s > self.until_s:
            return None
        respond = self._respond
        if self._allowance is not None:
            self._allowance.take()
        ask: Ask | None = getattr(respond, "ask", None)
        if ask is None or (answer := ask(data, a, b, arrived_s)) is None:
            answer = respond(data[a:b], arrived_s)
        return answer if type(answer) is bytes else self._entered(answer)

    def _echoed(self, body: bytes, arrived_s: float) -> Given:
        try:
            answer = self._inner(body, arrived_s)
        except Exception as error:
            answer = self._failed(error)
        if isinstance(answer, bytes):
            return self._named(answer)
        return answer.then(self._named) if isinstance(answer, Pending) else self._naming(answer)

    def _limited(self, body: bytes, arrived_s: float) -> Given:
        assert self._allowance is not None
        self._allowance.take()
        return self._entered(self._respond(body, arrived_s))

    def _entered(self, answer: Given) -> Given:
        """What is answered in this turn of the loop is never under way when another is asked."""
        allowance = self._allowance
        if isinstance(answer, bytes) or allowance is None or not allowance.limit:
            return answer
        if isinstance(answer, Pending) and answer.give_up is None:
            return answer
        try:
            allowance.enter()
        except TooMany:
            if isinstance(answer, Pending):
                answer.abandon()
            elif isinstance(answer, Coroutine):
                answer.close()
            raise
        if isinstance(answer, Pending):
            return answer.then(allowance.left, allowance.leave)
        return self._leaving(answer, allowance)

    async def _leaving(self, answer: Awaitable[Answered], allowance: Allowance) -> Answered:
        response: Answered = b""
        try:
            response = await answer
        finally:
            if isinstance(response, Stream):  # is under way until its end
                response.ended.append(allowance.leave)
            else:
                allowance.leave()
        return response

    def _named(self, answer: bytes) -> bytes:
        line, _, rest = answer.partition(b"\r\n")
        return line + self._echo + b"\r\n" + rest

    async def _naming(self, answer: Awaitable[Answered]) -> Answered:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(error)
        if isinstance(response, Stream):
            response.extra += self._echo[2:].decode("latin-1") + "\r\n"
            return response
        return self._named(response)


def admit(guard: Guard, head: Head) -> Admitted:
    """Who sends a header, asked once of the same while that holds. Raises `Unauthorized`."""
    known: Admitted | None = head.admitted
    if known is None or time.monotonic() > known.until_s:
        known = head.admitted = guard.admit(head.headers, known)
    return known


def welcomes(guard: Guard) -> Callable[[Head], bool]:
    """Whether a body is worth being kept: it has a sender who is known, and somebody who reads it."""

    def welcome(head: Head) -> bool:
        try:
            return head.path not in OPEN and admit(guard, head) is not None
        except Unauthorized:  # as the answer will say, once the request is whole
            return False

    return welcome


def trace(head: Head) -> str:
    """The header lines that let the next site's log name the same request."""
    given = head.headers.get(b"traceparent", b"")
    return f"traceparent: {given.decode()}\r\n" if TRACEPARENT.fullmatch(given) else ""


def timeout_s(head: Head) -> float | None:
    """How long a client waits, as it or the proxy before it says."""
    for name in (b"x-request-timeout-ms", b"x-envoy-expected-rq-timeout-ms"):
        given = head.headers.get(name, b"")
        if given.isdigit() and len(given) < 10:
            return int(given) / 1e3
    return None


def method_of(head: Head, methods: Collection[str]) -> str:
    """Which of a path's methods is asked: HEAD is GET, whose body the connection keeps back. Raises `NotAllowed`."""
    method = "GET" if head.method == "HEAD" and "GET" in methods else head.method
    if method not in methods:
        raise NotAllowed(head, methods)
    return method


def lines_of(error: Exception) -> str:
    """The header lines that HTTP wants beside an error, in whatever form it is said (RFC 9110 15.5.2, 15.5.6)."""
    if isinstance(error, Unauthorized):
        return 'WWW-Authenticate: Bearer realm="airserve"\r\n'
    if isinstance(error, NotAllowed):
        return f"Allow: {error.allow}\r\n"
    retry_s = getattr(error, "retry_s", None)
    return "" if retry_s is None else f"Retry-After: {math.ceil(retry_s)}\r\n"


def allowed(head: Head, model: str) -> bool:
    """Whether the one who sends this header may know of a model."""
    return head.admitted is None or head.admitted.tenant.may_use(model)


def _permit(admitted: Admitted, path: str) -> None:
    tenant, parts = admitted.tenant, path.split("/")
    if path.startswith("/v2/repository/models/") and not tenant.admin:
        raise Forbidden(f"{tenant.name} may not load or unload models; that takes a key of an admin.")
    if path.startswith("/v2/models/") and path.rstrip("/") != "/v2/models/stats":
        name = unquote(parts[3])
        if not tenant.may_use(name):
            raise Forbidden(f"{tenant.name} may not use {name[:80]!r}; it may use {', '.join(tenant.models)}.")
