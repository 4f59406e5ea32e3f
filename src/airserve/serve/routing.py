"""The way from a head to its tail: one kept-alive connection, requests in order, and the bytes they took on it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast, final

import orjson

from airserve import wire
from airserve.contract import Route
from airserve.model import Array, Tensor
from airserve.tensors import DTYPE, WireError
from airserve.timing import AirBytes, Timing, format_air

HEADER_LIMIT_BYTES = 64 << 10


class UpstreamFailed(RuntimeError):
    """The next site could not be reached, or answered with an error; the message is one sentence."""


class UpstreamLate(RuntimeError):
    """The next site did not answer before the deadline; the message is one sentence."""


class Answer(NamedTuple):
    """An HTTP response, and `size_bytes` that it took on the wire."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    size_bytes: int


class Onward(NamedTuple):
    """What the rest of the chain gave: outputs, the `air` entry, and the next site's own Server-Timing as it came."""

    outputs: list[tuple[Tensor, Array]]
    air: Timing
    server_timing: str


@final
class AnswerReader:
    """HTTP/1.1 responses out of a stream of bytes, with the size of each, which a general parser does not tell.

    >>> reader = AnswerReader()
    >>> reader.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhiHTTP/1.1 4")
    [Answer(status=200, headers={'content-length': '2'}, body=b'hi', size_bytes=40)]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str], int, int] | None = None  # status, headers, start and end of the body

    def feed(self, data: bytes) -> list[Answer]:
        """The responses that these bytes complete. Raises `WireError` for what is not HTTP with a length."""
        self._buffer += data
        answers: list[Answer] = []
        while True:
            if self._head is None:
                self._head = self._read_head()
            if self._head is None or len(self._buffer) < self._head[3]:
                return answers
            status, headers, start, end = self._head
            if status >= 200:  # 1xx announces another response to the same request
                answers.append(Answer(status, headers, bytes(self._buffer[start:end]), end))
            del self._buffer[:end]
            self._head = None

    def _read_head(self) -> tuple[int, dict[str, str], int, int] | None:
        end = self._buffer.find(b"\r\n\r\n", 0, HEADER_LIMIT_BYTES)
        if end < 0:
            if len(self._buffer) >= HEADER_LIMIT_BYTES:
                raise WireError(f"the response's header passes {HEADER_LIMIT_BYTES} bytes.")
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not (parts[1].isascii() and parts[1].isdigit()):
            raise WireError(f"the response starts with {first[:40]!r}, which is not HTTP/1.1.")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(parts[1]), headers.get("content-length", "")
        if status >= 200 and not (length.isascii() and length.isdigit()):
            raise WireError("the response has no Content-Length; a tail must send whole answers.")
        return status, headers, end + 4, end + 4 + int(length or 0)


@final
class Connection(asyncio.Protocol):
    """One connection on which requests go out at once and answers come back in their order."""

    def __init__(self) -> None:
        self._reader = AnswerReader()
        self._waiting: deque[asyncio.Future[tuple[Answer, int]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._sent_bytes = self._received_bytes = 0
        self.port = 0
        self.lost = False

    async def exchange(self, request: bytes, within_s: float) -> tuple[Answer, AirBytes]:
        """The answer to a request, and where both lie on the connection.

        Raises `ConnectionError` where the connection is lost, `TimeoutError` when no answer came in time.
        """
        if self.lost or self._transport is None:
            raise ConnectionResetError("the connection was closed")
        up = (self._sent_bytes, self._sent_bytes + len(request))
        self._sent_bytes = up[1]
        future: asyncio.Future[tuple[Answer, int]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._transport.write(request)
        try:
            async with asyncio.timeout(max(within_s, 0)):
                answer, ended = await future
        except TimeoutError:
            # The oldest is late: nothing behind it can be answered before it, so the connection is of no use.
            # A later one stays in the row, cancelled, and its answer is dropped when it comes.
            if self._waiting and self._waiting[0] is future:
                self._fail(ConnectionAbortedError("an earlier answer did not come"))
            raise
        return answer, AirBytes(self.port, up, (ended - answer.size_bytes, ended))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being derived from it
        self.port = transport.get_extra_info("sockname")[1]
        if (raw := transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            answers = self._reader.feed(data)
        except WireError as error:
            self._fail(ConnectionAbortedError(str(error).rstrip(".")))
            return
        for answer in answers:
            if not self._waiting:
                self._fail(ConnectionAbortedError("it answers what was not asked"))
                return
            self._received_bytes += answer.size_bytes
            future = self._waiting.popleft()
            if not future.done():
                future.set_result((answer, self._received_bytes))
            if answer.headers.get("connection", "").lower() == "close":
                self._fail(ConnectionResetError("the connection was closed"))
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError("the connection was closed"))

    def _fail(self, error: ConnectionError) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            if not (future := self._waiting.popleft()).done():
                future.set_exception(error)


@final
class Upstream:
    """The next site of a route: its connection, made again when it was lost."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def send(self, request: bytes, deadline_s: float) -> tuple[Answer, AirBytes]:
        """The answer to a request; it is sent once more where the peer died, for inference may be repeated.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        where = f"{self.route.model} at {self.route.host}:{self.route.port}"
        for last in (False, True):
            try:
                connection = await self._connected(deadline_s)
                return await connection.exchange(request, deadline_s - time.monotonic())
            except TimeoutError:
                raise UpstreamLate(f"{where} did not answer before the deadline; see that its site runs.") from None
            except OSError as error:
                if last or time.monotonic() >= deadline_s:
                    reason = error.strerror if error.errno and error.strerror else str(error)
                    raise UpstreamFailed(f"{where} cannot be asked ({reason}); see that its site runs.") from None
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connected(self, deadline_s: float) -> Connection:
        if self._connection is not None and not self._connection.lost:
            return self._connection
        async with asyncio.timeout(max(deadline_s - time.monotonic(), 0)), self._lock:
            if self._connection is None or self._connection.lost:
                local = (self.route.source, 0) if self.route.source else None
                _, self._connection = await asyncio.get_running_loop().create_connection(
                    Connection, self.route.host, self.route.port, local_addr=local
                )
            return self._connection


@final
class Router:
    """What a head does with its outputs: encode them, send them on, read what the rest of the chain answers."""

    def __init__(self, route: Route, upstream: Upstream | None = None) -> None:
        self.route = route
        self._upstream = upstream or Upstream(route)
        self._outputs: tuple[Tensor, ...] | None = None

    def encode(self, outputs: Sequence[tuple[Tensor, Array]], trace: str = "") -> bytes:
        """The request as it goes on the wire; the tail's inputs bear the names of the head's outputs."""
        route = self.route
        return wire.infer_request(
            route.model, outputs, host=f"{route.host}:{route.port}", compress=route.compress, extra=trace
        )

    async def ask(self, request: bytes, deadline_s: float) -> Onward:
        """The rest of the chain's answer; the `air` entry lasts from here until the whole response has come.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        begun_s = time.monotonic()
        answer, air = await self._upstream.send(request, deadline_s)
        ended_s = time.monotonic()
        self._check(answer)
        length = answer.headers.get("inference-header-content-length")
        try:
            response = wire.parse_response(answer.body, int(length) if length else None)
        except ValueError as error:
            raise UpstreamFailed(f"{self.route.model} answers what cannot be read: {error}") from None
        return Onward(
            response.outputs,
            Timing("air", 1e3 * (ended_s - begun_s), format_air(air)),
            answer.headers.get("server-timing", ""),
        )

    async def outputs(self, deadline_s: float) -> tuple[Tensor, ...]:
        """What the rest of the chain gives, as the next site describes it; asked once.

        Raises `UpstreamFailed`, `UpstreamLate`.
        """
        if self._outputs is None:
            route = self.route
            request = wire.metadata_request(route.model, host=f"{route.host}:{route.port}")
            answer, _ = await self._upstream.send(request, deadline_s)
            self._check(answer)
            try:
                self._outputs = tuple(
                    Tensor(one["name"], DTYPE[one["datatype"]], tuple(one["shape"]))
                    for one in orjson.loads(answer.body)["outputs"]
                )
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise UpstreamFailed(f"{route.model} describes itself in a way that cannot be read.") from None
        return self._outputs

    def close(self) -> None:
        self._upstream.close()

    def _check(self, answer: Answer) -> None:
        if answer.status != 200:
            kind = UpstreamLate if answer.status == 504 else UpstreamFailed
            where = f"{self.route.model} at {self.route.host}:{self.route.port}"
            raise kind(f"{where} answers {answer.status}: {wire.parse_error(answer.body)}")
