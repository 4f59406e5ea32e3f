"""HTTP/1.1 (RFC 9112) for the protocols that travel on it: an asyncio Protocol over httptools, answers in order.

A client repeats the header of its last request byte for byte. Such a header is not parsed again: what follows from it
was worked out the first time and is kept in its `Head`, with the protocol's own in `Head.memo`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast, final

import httptools

from airserve import wire
from airserve.serve.batching import Overloaded
from airserve.serve.protocols._head import Head, another_length, repeatable
from airserve.serve.protocols._limits import Bodies, Limits
from airserve.serve.protocols._pending import Pending, Slot
from airserve.serve.protocols._streaming import LAST, Stream, chunk

HELD_LIMIT_BYTES = 64 << 10  # a longer body is left to the parser
ONCE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"inference-header-content-length",
     b"authorization", b"x-api-key", b"traceparent")
)  # fmt: skip


# What answers a request: its head, its body, and when its last byte was read, by time.monotonic. A whole HTTP response,
# at once, by the end of the loop's turn, or later, or a stream of its parts.
Given = bytes | Pending | Awaitable[bytes | Stream]
Answer = Callable[[Head, bytes, float], Given]
Failed = Callable[[Exception], bytes]  # the response to an exception of `Answer`
Welcome = Callable[[Head], bool]  # whether the body that follows a header is worth being kept


@final
class Connection(asyncio.Protocol):
    """A client's connection: a parser, and a row of answers that leave in the order of the requests."""

    def __init__(
        self,
        answer: Answer,
        failed: Failed,
        connections: set[Connection],
        limits: Limits,
        bodies: Bodies,
        welcome: Welcome | None,
    ) -> None:
        self._answer = answer
        self._failed = failed
        self._connections = connections
        self._limits = limits
        self._bodies = bodies
        self._welcome = welcome
        self._holds_bytes = 0  # of `bodies`
        self._seen_bytes = 0  # of a body, when the sweep looked at it
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._row: deque[Slot | Pending] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False  # after the answers in the row; nothing more is read
        self._draining = self._full = self._paused = self._lingering = False
        self._feeding = False
        self._resumed: asyncio.Future[None] | None = None  # what a stream waits for while its client reads too slowly
        self._message = 0  # counts those begun
        self._since_s = time.monotonic()  # that the state lasts
        self._again: Head | None = None
        self._head: Head  # of the request that is being read, once it is there
        self._latest: Head | None = None  # that was parsed
        self._headings: list[Head] = []  # of the request that a piece of data begins with, where it may come again
        self._held = b""  # the front of a request with the last header, whose body is not all there
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
        self._let_go(self._holds_bytes)
        del self._parser  # which leads back here: together they would stay, with what was held, until a collection
        for task in list(self._tasks):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._arrived_s = time.monotonic()
        if self._held:
            data, self._held, self._state = self._held + data, b"", ""
        if not self._state and self._again is not None:
            data = self._repeated(data, self._again)
            if not data or self._closing:
                if self._draining:
                    self._flush()
                return
        self._feed(data)

    def eof_received(self) -> bool:
        """A client may close its half and still read: the answers in the row are sent first, but for the dearest."""
        self._closing = True
        self._flush()
        return bool(self._row) and not any(slot.head is not None and slot.head.costly for slot in self._row)

    def pause_writing(self) -> None:
        self._paused = True
        self._since_s = time.monotonic()
        self._throttle()

    def resume_writing(self) -> None:
        self._paused = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._since_s = time.monotonic()
        self._throttle()

    # reading

    def _repeated(self, data: bytes, head: Head) -> bytes:
        """Answers the whole requests at the front of `data` that have the last header again; the rest of `data`."""
        at, size, again, answers = 0, len(data), head.again, []
        quick, row, arrived_s = head.quick, self._row, self._arrived_s
        while at < size:
            if data.startswith(again, at):
                body, length = at + len(again), head.length
            else:
                body, length = another_length(head, data, at)
                if not body or length > self._limits.body_bytes:
                    break
            end = body + length
            if end > size:
                if length <= HELD_LIMIT_BYTES:  # many clients send a body apart from its header
                    self._held, self._state, self._since_s = data[at:], "body", arrived_s
                    at = size
                break
            try:
                answer = quick(data, body, end, arrived_s) if quick is not None else None
                if answer is None:
                    answer, quick = self._answer(head, data[body:end], arrived_s), head.quick
            except Exception as error:
                answer = self._failed(error)
            at = end
            self._since_s = arrived_s
            if type(answer) is Pending:
                row.append(answer)
                answer.settled = self._settled
                if len(row) >= self._limits.pipeline:
                    self._throttle()
            elif type(answer) is bytes and not row:
                answers.append(answer)
            else:
                self._place(Slot(head=head), answer)
        if answers and self._transport is not None:
            # What is in the row came after these.
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))
            if row:
                self._flush()
        return data[at:] if at else data

    def _feed(self, data: bytes) -> None:
        self._feeding = True
        message = self._message
        self._first = -1 if self._state else message + 1  # only of this one is the start known
        rest = data
        while rest:
            try:
                self._parser.feed_data(rest)
                rest = b""
            except httptools.HttpParserUpgrade as upgrade:  # the parser thinks that the header was the message
                rest = b"" if self._closing else self._without_upgrade() + rest[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._refuse(400, f"the request is not HTTP/1.1: {str(error)[:100]}.")
                rest = b""
        self._feeding = False
        if (heading := self._headings.pop() if self._headings else None) is not None:
            self._again = repeatable(heading, data)
        if self._state and message == self._message:  # the parser holds a header until it is whole: count what it gets
            limits = self._limits
            self._fed_bytes += len(data)
            if self._fed_bytes > (limits.header_bytes if self._state == "header" else 2 * limits.body_bytes):
                refuse = self._refuse_header if self._state == "header" else self._refuse_body
                refuse()
        if self._draining:
            self._flush()

    def _without_upgrade(self) -> bytes:
        """The header that was read, without what asks for another protocol: a server may ignore it (RFC 9110 7.8)."""
        parser, headers = self._parser, self._headers
        options = [option.strip() for option in headers.get(b"connection", b"").split(b",")]
        connection = b", ".join(option for option in options if option and option.lower() != b"upgrade")
        kept = {k: v for k, v in headers.items() if k not in (b"upgrade", b"connection")}
        if connection:
            kept[b"connection"] = connection
        first = b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())
        return first + b"".join(b"%b: %b\r\n" % line for line in kept.items()) + b"\r\n"

    # httptools

    def on_message_begin(self) -> None:
        self._reset()
        self._message += 1
        self._state = "header"
        self._since_s = self._arrived_s

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_header()
        if self._state == "body":  # a trailer, which is no header: it has passed whoever checks those (RFC 9110 6.5.1)
            return
        name = name.lower()
        if name in self._headers:
            if name in ONCE:
                self._refuse(400, f"the header {name.decode('latin-1')} is given twice; send it once.")
            value = self._headers[name] + b", " + value
            self._plain = False
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._state = "body"
        if self._closing:
            return
        headers = self._headers
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                self._refuse(400, "the connection stays HTTP/1.1 and leads nowhere else; send no CONNECT.")
        elif b"host" not in headers and self._parser.get_http_version() == "1.1":
            self._refuse(400, "the request has no Host header, which HTTP/1.1 wants.")
        elif int(headers.get(b"content-length") or 0) > self._limits.body_bytes:
            self._refuse_body()
        else:
            head = self._head = Head(self._parser.get_method().decode("latin-1"), self._url, headers)
            if (latest := self._latest) is not None and latest.asks_as(head):
                head.memo, head.admitted, head.quick = latest.memo, latest.admitted, latest.quick
            if self._welcome is not None and not self._welcome(head):
                self._kept = False  # it is read, for a request of somebody else may follow on the same connection
            if headers.get(b"expect", b"").lower() == b"100-continue" and not self._row and self._transport:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        elif self._kept:
            self._body.append(body)
            self._holds_bytes += len(body)
            self._bodies.held_bytes += len(body)
            if self._bodies.held_bytes > self._limits.bodies_bytes:
                self._spilled = True
                self._drop()

    def on_message_complete(self) -> None:
        if self._closing or self._parser.should_upgrade():  # comes again, `_without_upgrade`
            return
        self._state = ""
        self._since_s = self._arrived_s
        head = self._latest = self._head
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        self._closing = not self._parser.should_keep_alive()
        head.old = self._parser.get_http_version() == "1.0"
        fresh = self._message == self._first and self._plain and not self._closing
        if fresh and self._kept and not head.old and head.method == "POST":
            head.length = len(body)
            self._headings.append(head)
        slot = Slot(bare=head.method == "HEAD", stays=head.old and not self._closing, head=head)
        slot.held_bytes = len(body)
        try:
            if self._spilled:
                raise Overloaded(f"{self._limits.bodies_bytes} bytes of bodies are held already; ask again later.")
            answer = self._answer(head, body, self._arrived_s)
        except Exception as error:
            answer = self._failed(error)
        self._place(slot, answer)

    # answers

    def drain(self) -> None:
        """Closes once what has come is answered, at once where nothing has."""
        self._draining = True
        self._flush()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now_s: float) -> None:
        """Ends the connection where its client has taken too long."""
        limits, lasts_s = self._limits, now_s - self._since_s
        if self._lingering:
            return
        if self._paused:
            if lasts_s > limits.write_s:
                self.abort()
        elif self._state:
            if lasts_s <= limits.header_s:
                return
            least = limits.header_s * limits.body_bytes_per_s
            if self._full or (self._state == "body" and self._body_bytes - self._seen_bytes >= least):
                self._seen_bytes = self._body_bytes
                self._since_s = now_s
            else:
                self._refuse(408, "the request took too long to arrive; send it at once.")
        elif not self._row and lasts_s > limits.idle_s and self._transport is not None:
            self._closing = True
            self._transport.close()

    async def _later(self, slot: Slot, answer: Awaitable[bytes | Stream]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(error)
        if isinstance(response, Stream):
            self._let_go(slot.held_bytes)
            await self._pass(slot, response)
        else:
            self._fill(slot, response)

    async def _pass(self, slot: Slot, stream: Stream) -> None:
        """Sends a stream in its turn, as fast as it is made and read."""
        loop = asyncio.get_running_loop()
        old = slot.head is not None and slot.head.old
        slot.turn = loop.create_future()
        try:
            self._flush()
            await slot.turn
            self._write(stream.head(chunked=not old))
            async for part in stream.parts:
                while self._paused:
                    self._resumed = loop.create_future()
                    await self._resumed
                self._write(part if old else chunk(part))
            self._write(b"" if old else LAST)
        except Exception as error:
            self._failed(error)  # for its log: what has been sent cannot be taken back
            return self.abort()  # so that the client sees an answer without an end
        finally:
            await stream.close()
        self._closing = self._closing or old
        self._row.popleft()
        self._flush()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _place(self, slot: Slot, answer: Given) -> None:
        """Puts an answer into the row, where it is there already or when it is."""
        self._row.append(slot)
        if isinstance(answer, bytes):
            self._fill(slot, answer)
        elif isinstance(answer, Pending):
            answer.settled = lambda pending: self._fill(slot, pending.response or b"")
        else:
            task = asyncio.get_running_loop().create_task(self._later(slot, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._throttle()

    def _fill(self, slot: Slot, response: bytes) -> None:
        if slot.held_bytes:
            self._let_go(slot.held_bytes)
        if slot.stays:
            response = response.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1)
        slot.response = response[: response.index(b"\r\n\r\n") + 4] if slot.bare else response
        self._flush()

    def _settled(self, pending: Pending) -> None:
        row, transport = self._row, self._transport
        if len(row) > 1 or self._closing or self._draining or self._full or transport is None:
            self._flush()
        else:  # nearly always: the only one, and nothing else to see to
            row.clear()
            transport.write(pending.response or b"")

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
                transport.write_eof() if transport.can_write_eof() else transport.close()
                asyncio.get_running_loop().call_later(self._limits.linger_s, self.abort)
                return
        if self._row and (turn := self._row[0].turn) is not None and not turn.done():
            turn.set_result(None)
        idle = self._draining and not self._state and not self._feeding
        if not self._row and not self._lingering and (self._closing or idle):
            self._closing = True
            transport.close()
        elif self._full:
            self._throttle()

    def _refuse_header(self) -> None:
        self._refuse(431, f"the request's header passes {self._limits.header_bytes} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body passes {self._limits.body_bytes} bytes; send fewer samples at once.")

    def _refuse(self, status: int, sentence: str) -> None:
        """An error after which nobody knows where the next request starts: it is the connection's last answer."""
        if self._closing:
            return
        self._closing = True
        self._drop()
        slot = Slot(lingers=True)
        self._row.append(slot)
        self._fill(slot, wire.error_response(status, sentence, close=True))

    def _drop(self) -> None:
        """Keeps nothing of the body that is being read."""
        self._kept = False
        self._let_go(sum(map(len, self._body)))
        self._body.clear()

    def _let_go(self, size: int) -> None:
        size = min(size, self._holds_bytes)  # a connection that has ended holds nothing, whatever is answered later
        self._holds_bytes -= size
        self._bodies.held_bytes -= size

    def _throttle(self) -> None:
        """Reads no further while too much waits to be answered or to be sent."""
        full = self._paused or len(self._row) >= self._limits.pipeline
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
        self._header_bytes = self._body_bytes = self._seen_bytes = self._fed_bytes = 0
        self._plain = True  # no header was given twice
        self._kept = True  # the body is
        self._spilled = False  # it is not, for there was no room
