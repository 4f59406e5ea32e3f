"""HTTP/1.1 (RFC 9112) for the protocols that travel on it: an asyncio Protocol over httptools, answers in order.

A client repeats the header of its last request byte for byte. Such a header is not parsed again: what follows from it
was worked out the first time and is kept in its `Head`, with the protocol's own in `Head.memo`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import cast, final

import httptools

from airserve import wire
from airserve.serve.batching import Overloaded
from airserve.serve.protocols._head import AGAIN_LIMIT_BYTES, Head, another_length, repeatable
from airserve.serve.protocols._held import SMALL_BYTES, Held
from airserve.serve.protocols._limits import Bodies, Limits, Share
from airserve.serve.protocols._pending import Pending, Slot
from airserve.serve.protocols._row import Failed as Failed
from airserve.serve.protocols._row import Given as Given
from airserve.serve.protocols._row import Row

ONCE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"inference-header-content-length",
     b"authorization", b"x-api-key", b"traceparent")
)  # fmt: skip


# What answers a request: its head, its body, and when its last byte was read, by time.monotonic.
Answer = Callable[[Head, bytes, float], Given]
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
        self._share = Share(bodies)
        self._welcome = welcome
        self._row = Row(failed, limits, self._share)
        self._parser = httptools.HttpRequestParser(self)
        self._message = 0  # counts those begun
        self._since_s = time.monotonic()  # that the state lasts
        self._seen_bytes = 0  # of a body, when the sweep looked at it
        self._again: Head | None = None
        self._head: Head  # of the request that is being read, once it is there
        self._latest: Head | None = None  # that was parsed
        self._headings: list[Head] = []  # of the request that a piece of data begins with, where it may come again
        self._first, self._front = 0, b""  # the last message of which the start is known, while it lasts
        self._held = Held(self._share, limits)  # a request with the last header, whose body is not all there
        self._reset()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._row.transport = cast(asyncio.Transport, transport)  # uvloop's is one without being derived from it
        if (raw := transport.get_extra_info("socket")) is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._row.lost()
        del self._parser  # which leads back here: together they would stay, with what was held, until a collection

    def data_received(self, data: bytes) -> None:
        row = self._row
        if row.closing:
            return
        row.reading = True
        self._arrived_s = time.monotonic()
        counted_bytes, room = 0, True
        if self._held.held_bytes:
            data, counted_bytes, room = self._held.add(data)
            if not data:
                return
            self._state = ""
        if not self._state and self._again is not None and room:
            data = self._repeated(data, self._again, counted_bytes)
        if data and not row.closing:
            self._feed(data)
        row.reading = bool(self._state)
        if row.draining:
            row.flush()

    def eof_received(self) -> bool:
        """A client may close its half and still read: the answers in the row are sent first, but for the dearest."""
        row = self._row
        row.closing = True
        row.flush()
        return bool(row.places) and not any(place.head is not None and place.head.costly for place in row.places)

    def pause_writing(self) -> None:
        self._since_s = time.monotonic()
        self._row.pause(True)

    def resume_writing(self) -> None:
        self._since_s = time.monotonic()
        self._row.pause(False)

    # reading

    def _repeated(self, data: bytes, head: Head, counted_bytes: int) -> bytes:
        """Answers the whole requests at the front of `data` that have the last header again; the rest of `data`.

        Of the first, `counted_bytes` are among the bodies that the listener holds.
        """
        at, size, again, answers = 0, len(data), head.again, []
        quick, row, arrived_s = head.quick, self._row, self._arrived_s
        places = row.places
        while at < size:
            if data.startswith(again, at):
                body, length = at + len(again), head.length
            else:
                body, length = another_length(head, data, at)
                if not body or length > self._limits.body_bytes:
                    break
            end = body + length
            if end > size:
                if self._may_hold(head, length) and self._held.begin(data[at:], end - at):
                    self._state, self._since_s, self._seen_bytes = "body", arrived_s, 0
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
            if counted_bytes:
                row.place(Slot(head=head, held_bytes=counted_bytes), answer)
                counted_bytes = 0
            elif type(answer) is Pending:
                places.append(answer)
                answer.settled = row.settled
                if len(places) >= self._limits.pipeline:
                    row.throttle()
            elif type(answer) is bytes and not places:
                answers.append(answer)
            else:
                row.place(Slot(head=head), answer)
        if answers and row.transport is not None:
            # What is in the row came after these.
            row.transport.write(answers[0] if len(answers) == 1 else b"".join(answers))
            if places:
                row.flush()
        return data[at:]

    def _may_hold(self, head: Head, length: int) -> bool:
        """Many clients send a body apart from its header. A large one is held for those who are known, as elsewhere."""
        if length <= SMALL_BYTES:
            return True
        return head.quick is not None and (self._welcome is None or self._welcome(head))

    def _feed(self, data: bytes) -> None:
        message = self._message
        if not self._state:
            self._first, self._front = message + 1, data
        rest = data
        while rest:
            try:
                self._parser.feed_data(rest)
                rest = b""
            except httptools.HttpParserUpgrade as upgrade:  # the parser thinks that the header was the message
                rest = b"" if self._row.closing else self._without_upgrade() + rest[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._refuse(400, f"the request is not HTTP/1.1: {str(error)[:100]}.")
                rest = b""
        if (heading := self._headings.pop() if self._headings else None) is not None:
            self._again = repeatable(heading, self._front)
        going_on = self._message == self._first and self._state == "body"
        self._front = self._front[:AGAIN_LIMIT_BYTES] if going_on else b""
        if self._state and message == self._message:  # the parser holds a header until it is whole: count what it gets
            limits = self._limits
            self._fed_bytes += len(data)
            if self._fed_bytes > (limits.header_bytes if self._state == "header" else 2 * limits.body_bytes):
                refuse = self._refuse_header if self._state == "header" else self._refuse_body
                refuse()

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
        if self._row.closing:
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
            if headers.get(b"expect", b"").lower() == b"100-continue":
                self._expected(head)

    def on_body(self, body: bytes) -> None:
        if self._row.closing:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        elif self._kept:
            self._body.append(body)
            if self._share.take(len(body)) > self._limits.bodies_bytes:
                self._spilled = True
                self._drop()

    def on_message_complete(self) -> None:
        if self._row.closing or self._parser.should_upgrade():  # comes again, `_without_upgrade`
            return
        self._state = ""
        self._since_s = self._arrived_s
        head = self._latest = self._head
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        self._row.closing = not self._parser.should_keep_alive()
        head.old = self._parser.get_http_version() == "1.0"
        fresh = self._message == self._first and self._plain and not self._row.closing
        if fresh and self._kept and not head.old and head.method == "POST":
            head.length = len(body)
            self._headings.append(head)
        bare, stays = head.method == "HEAD", head.old and not self._row.closing
        slot = Slot(bare=bare, stays=stays, head=head, held_bytes=len(body))
        try:
            if self._spilled:
                raise Overloaded(f"{self._limits.bodies_bytes} bytes of bodies are held already; ask again later.")
            answer = self._answer(head, body, self._arrived_s)
        except Exception as error:
            answer = self._failed(error)
        self._row.place(slot, answer)

    def _expected(self, head: Head) -> None:
        """The client sends a body once it is told to; one that is not wanted is answered in its place."""
        row = self._row
        if self._kept:
            if not row.places and row.transport is not None:
                row.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        try:
            answer = self._answer(head, b"", self._arrived_s)
        except Exception as error:
            answer = self._failed(error)
        row.end_with(answer)

    # the end

    def drain(self) -> None:
        """Closes once what has come is answered, at once where nothing has."""
        self._row.draining = True
        self._row.flush()

    def abort(self) -> None:
        self._row.abort()

    def sweep(self, now_s: float) -> None:
        """Ends the connection where its client has taken too long."""
        limits, row, lasts_s = self._limits, self._row, now_s - self._since_s
        if row.lingering:
            return
        if row.paused:
            if lasts_s > limits.write_s:
                row.abort()
        elif self._state:
            if lasts_s <= limits.header_s:
                return
            least, got_bytes = limits.header_s * limits.body_bytes_per_s, self._body_bytes + self._held.held_bytes
            if row.full or (self._state == "body" and got_bytes - self._seen_bytes >= least):
                self._seen_bytes = got_bytes
                self._since_s = now_s
            else:
                self._refuse(408, "the request took too long to arrive; send it at once.")
        elif not row.places and lasts_s > limits.idle_s:
            row.closing = True
            row.flush()

    def _refuse_header(self) -> None:
        self._refuse(431, f"the request's header passes {self._limits.header_bytes} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body passes {self._limits.body_bytes} bytes; send fewer samples at once.")

    def _refuse(self, status: int, sentence: str) -> None:
        """An error after which nobody knows where the next request starts: it is the connection's last answer."""
        if not self._row.closing:
            self._drop()
            self._row.end_with(wire.error_response(status, sentence))

    def _drop(self) -> None:
        """Keeps nothing of the body that is being read."""
        self._kept = False
        self._share.let_go(sum(map(len, self._body)))
        self._body.clear()
        self._held.drop()

    def _reset(self) -> None:
        self._state = ""  # of the message that is being read: "header", "body", "" between messages
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._header_bytes = self._body_bytes = self._seen_bytes = self._fed_bytes = 0
        self._plain = True  # no header was given twice
        self._kept = True  # the body is
        self._spilled = False  # it is not, for there was no room
