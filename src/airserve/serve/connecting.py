"""Connections to a place that is asked: requests go out at once, answers come back in order, with the bytes each took.

HTTP/1.1 pipelining (RFC 9112 9.3.2) where all connections are busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple, cast, final

from airserve.contract import Route
from airserve.tensors import WireError
from airserve.timing import AirBytes

HEADER_LIMIT_BYTES = 64 << 10


class UpstreamFailed(RuntimeError):
    """The next site could not be reached, or answered with an error; the message is one sentence."""


class UpstreamLate(RuntimeError):
    """The next site did not answer before the deadline; the message is one sentence."""


class Refused(Exception):
    """A place has answered, with an error of its own that is no `Answer`."""


class Rest(NamedTuple):
    """What of an answer is still to come, and what ends it, whether it is over or not."""

    parts: AsyncGenerator[bytes]
    end: Callable[[], None]


class Answer(NamedTuple):
    """An HTTP response, and `size_bytes` that it took on the wire."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    size_bytes: int
    rest: Rest | None = None  # after the body, where it comes in parts


@final
class AnswerReader:
    """HTTP/1.1 responses out of a stream of bytes, with the size of each, which a general parser does not tell.

    >>> reader = AnswerReader()
    >>> reader.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhiHTTP/1.1 4")
    [Answer(status=200, headers={'content-length': '2'}, body=b'hi', size_bytes=40, rest=None)]
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
        status, headers = head_of(self._buffer[:end])
        length = headers.get("content-length", "")
        if status >= 200 and not (length.isascii() and length.isdigit()):
            raise WireError("the response has no Content-Length; a tail must send whole answers.")
        return status, headers, end + 4, end + 4 + int(length or 0)


def head_of(data: bytes | bytearray) -> tuple[int, dict[str, str]]:
    """Status and header of a response, names in lower case. Raises `WireError`."""
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not (parts[1].isascii() and parts[1].isdigit()):
        raise WireError(f"the response starts with {first[:40]!r}, which is not HTTP/1.1.")
    return int(parts[1]), {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }


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
            # Where nobody waits for what is before it, nothing behind it can be answered before it either: the
            # connection is of no use. Else it stays in the row, cancelled, and its answer is dropped when it comes.
            oldest = next((one for one in self._waiting if one is future or not one.done()), None)
            if oldest is future:
                self._fail(ConnectionAbortedError("an earlier answer did not come"))
            raise
        except asyncio.CancelledError:
            # Whoever asks next is not to wait behind answers that nobody wants, and the place is to know of it.
            if self._waiting and all(one.done() for one in self._waiting):
                self._fail(ConnectionAbortedError("nobody waits for its answers"))
            raise
        return answer, AirBytes(self.port, up, (ended - answer.size_bytes, ended))

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._waiting)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self, why: str) -> None:
        """End the connection; what waits on it fails with `ConnectionAbortedError`."""
        self._fail(ConnectionAbortedError(why))

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


@contextlib.asynccontextmanager
async def connecting(within_s: float, connect_s: float) -> AsyncGenerator[None]:
    """The time that a connection may take to open.

    Raises `TimeoutError` where the request's own time, `within_s`, is over, `ConnectionAbortedError` where the place's
    is.
    """
    try:
        async with asyncio.timeout(min(within_s, connect_s)):
            yield
    except TimeoutError:
        if within_s <= connect_s:
            raise
        raise ConnectionAbortedError(f"no connection within {connect_s:g} s") from None


@final
class Upstream:
    """A place that a route leads to: its connections, opened when they are needed and kept.

    A request takes an idle connection; where none is idle and fewer than `connections` are open, a new one; else it
    goes behind others on the least busy. `connect_s` bounds the opening of one, beside the request's deadline.
    """

    def __init__(
        self, route: Route, connections: int = 1, connect_s: float = math.inf, tls: ssl.SSLContext | None = None
    ) -> None:
        self.route, self._tls = route, tls
        self._limit, self._connect_s = connections, connect_s
        self._open: list[Connection] = []
        self._opening = 0
        self._opened = asyncio.Event()  # set, and put in place anew, when an opening has ended

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return sum(connection.waiting for connection in self._open) + self._opening

    async def exchange(self, request: bytes, deadline_s: float) -> tuple[Answer, AirBytes]:
        """The answer to a request, and where both lie on their connection; `deadline_s` is of `time.monotonic`.

        Raises `TimeoutError` at the deadline, `OSError` where the place cannot be reached or the connection is lost.
        """
        connection = await self._connected(deadline_s)
        return await connection.exchange(request, deadline_s - time.monotonic())

    async def ready(self, deadline_s: float) -> bool:
        """Whether the place says that it is ready (V2), on a connection of its own. Raises as `exchange`."""
        one = Upstream(self.route, 1, self._connect_s, self._tls)
        request = f"GET /v2/health/ready HTTP/1.1\r\nHost: {self.route.host}:{self.route.port}\r\n\r\n".encode()
        try:
            return (await one.exchange(request, deadline_s))[0].status == 200
        finally:
            one.close()

    def abort(self, why: str) -> None:
        """End all connections; what waits on them fails with `ConnectionAbortedError`."""
        for connection in self._open:
            connection.abort(why)

    def close(self) -> None:
        for connection in self._open:
            if self._tls is None:
                connection.close()
            else:  # a farewell takes turns of a loop that may be about to end
                connection.abort("the connection was closed")

    async def _connected(self, deadline_s: float) -> Connection:
        while True:
            self._open = [connection for connection in self._open if not connection.lost]
            idlest = min(self._open, key=lambda connection: connection.waiting, default=None)
            full = len(self._open) + self._opening >= self._limit
            if idlest is not None and (full or not idlest.waiting):
                return idlest
            within_s = max(deadline_s - time.monotonic(), 0)
            if full:  # all of them are still being opened
                async with asyncio.timeout(within_s):
                    await self._opened.wait()
                continue
            return await self._connect(within_s)

    async def _connect(self, within_s: float) -> Connection:
        local = (self.route.source, 0) if self.route.source else None
        self._opening += 1
        try:
            async with connecting(within_s, self._connect_s):
                _, made = await asyncio.get_running_loop().create_connection(
                    Connection, self.route.host, self.route.port, local_addr=local, ssl=self._tls
                )
        finally:
            self._opening -= 1
            self._opened.set()
            self._opened = asyncio.Event()
        self._open.append(made)
        return made
