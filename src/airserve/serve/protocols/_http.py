"""HTTP/1.1 (RFC 9112) for the protocols that travel on it: an asyncio Protocol over httptools, answers in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast, final

import httptools

from airserve import wire

HEADER_LIMIT_BYTES = 64 << 10
PIPELINE_LIMIT = 1024  # requests of a connection that may wait for their answers before it is read no further
LINGER_S = 2.0  # a client that still sends is read for so long, for a reset would take the answer from it


class Request(NamedTuple):
    """A whole request; `path` is without the query, `headers` have names in lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    arrived_s: float  # by time.monotonic, when its last byte was read


Answer = Callable[[Request], bytes | Awaitable[bytes]]  # at once, or later; a whole HTTP response
Failed = Callable[[Exception], bytes]  # the response to an exception of `Answer`


async def listen(answer: Answer, failed: Failed, host: str, port: int) -> Listener:
    """Answers at an address (port 0: any that is free). Raises `OSError` where it is taken."""
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(answer, failed, connections), host, port)
    return Listener(server, connections)


@final
class Listener:
    """A listening socket and its connections."""

    def __init__(self, server: asyncio.Server, connections: set[Connection]) -> None:
        self._server = server
        self._connections = connections
        self.port: int = server.sockets[0].getsockname()[1]

    async def drain(self, within_s: float) -> None:
        """Takes no new connections, answers what has come, and closes; what is not answered in time is cut."""
        self._server.close()
        for connection in list(self._connections):
            connection.drain()
        until_s = time.monotonic() + within_s
        while self._connections and time.monotonic() < until_s:
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)


@final
class Connection(asyncio.Protocol):
    """A client's connection: a parser, and a row of answers that leave in the order of the requests."""

    def __init__(self, answer: Answer, failed: Failed, connections: set[Connection]) -> None:
        self._answer = answer
        self._failed = failed
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._row: deque[_Slot] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False  # after the answers in the row; nothing more is read
        self._draining = self._full = self._paused = self._lingering = False
        self._feeding = False
        self._message = 0  # counts those begun
        self._reset()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being derived from it
        if (raw := transport.get_extra_info("socket")) is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        self._transport = None
        for task in list(self._tasks):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._feeding = True
        message = self._message
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is not HTTP/1.1: {str(error)[:100]}.")
        self._feeding = False
        if self._state and message == self._message:  # the parser holds a header until it is whole: count what it gets
            self._fed_bytes += len(data)
            if self._fed_bytes > (HEADER_LIMIT_BYTES if self._state == "header" else 2 * wire.BODY_LIMIT_BYTES):
                refuse = self._refuse_header if self._state == "header" else self._refuse_body
                refuse()
        if self._draining:
            self._flush()

    def eof_received(self) -> bool:
        """A client may close its half and still read: the answers in the row are sent first."""
        self._closing = True
        self._flush()
        return bool(self._row)

    def pause_writing(self) -> None:
        self._paused = True
        self._throttle()

    def resume_writing(self) -> None:
        self._paused = False
        self._throttle()

    # httptools

    def on_message_begin(self) -> None:
        self._reset()
        self._message += 1
        self._state = "header"

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_LIMIT_BYTES:
            self._refuse_header()
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._state = "body"
        if self._closing:
            return
        if self._parser.should_upgrade():
            self._refuse(400, "the connection stays HTTP/1.1; send the request without Upgrade.")
        elif int(self._headers.get(b"content-length") or 0) > wire.BODY_LIMIT_BYTES:
            self._refuse_body()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._row and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        self._body_bytes += len(body)
        if self._body_bytes > wire.BODY_LIMIT_BYTES:
            self._refuse_body()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._closing:
            return
        self._state = ""
        method = self._parser.get_method()
        slot = _Slot(bare=method == b"HEAD")
        self._row.append(slot)
        self._closing = not self._parser.should_keep_alive()
        try:
            answer = self._answer(self._request(method))
        except Exception as error:
            answer = self._failed(error)
        if isinstance(answer, bytes):
            self._fill(slot, answer)
        else:
            task = asyncio.get_running_loop().create_task(self._later(slot, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._throttle()

    # answers

    def drain(self) -> None:
        """Closes once what has come is answered, at once where nothing has."""
        self._draining = True
        self._flush()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _request(self, method: bytes) -> Request:
        path, _, _ = self._url.partition(b"?")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Request(method.decode("latin-1"), path.decode("latin-1"), self._headers, body, time.monotonic())

    async def _later(self, slot: _Slot, answer: Awaitable[bytes]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(error)
        self._fill(slot, response)

    def _fill(self, slot: _Slot, response: bytes) -> None:
        slot.response = response[: response.index(b"\r\n\r\n") + 4] if slot.bare else response
        self._flush()

    def _flush(self) -> None:
        """Sends the answers at the front of the row that are there."""
        transport = self._transport
        if transport is None:
            return
        while self._row and (response := self._row[0].response) is not None:
            slot = self._row.popleft()
            transport.write(response)
            if slot.lingers:
                self._lingering = True
                transport.write_eof()
                asyncio.get_running_loop().call_later(LINGER_S, self.abort)
                return
        idle = self._draining and not self._state and not self._feeding
        if not self._row and not self._lingering and (self._closing or idle):
            self._closing = True
            transport.close()
        elif self._full:
            self._throttle()

    def _refuse_header(self) -> None:
        self._refuse(431, f"the request's header passes {HEADER_LIMIT_BYTES} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body passes {wire.BODY_LIMIT_BYTES} bytes; send fewer samples at once.")

    def _refuse(self, status: int, sentence: str) -> None:
        """An error after which nobody knows where the next request starts: it is the connection's last answer."""
        if self._closing:
            return
        self._closing = True
        slot = _Slot(lingers=True)
        self._row.append(slot)
        self._fill(slot, wire.error_response(status, sentence, close=True))

    def _throttle(self) -> None:
        """Reads no further while too much waits to be answered or to be sent."""
        full = self._paused or len(self._row) >= PIPELINE_LIMIT
        if full != self._full and self._transport is not None:
            self._full = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _reset(self) -> None:
        self._state = ""  # of the message that is being read: "header", "body", "" between messages
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._header_bytes = self._body_bytes = self._fed_bytes = 0


@final
class _Slot:
    """A request's place in the row of answers."""

    __slots__ = ("bare", "lingers", "response")

    def __init__(self, *, bare: bool = False, lingers: bool = False) -> None:
        self.response: bytes | None = None
        self.bare = bare  # an answer to HEAD has no body
        self.lingers = lingers
