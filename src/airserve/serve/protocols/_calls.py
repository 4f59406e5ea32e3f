"""Calls over gRPC, answered on the one thread that hears of them.

`grpc.server` hands each call from the thread that polls to a pool and back, which is most of what a small call costs. A
worker has one core, so here that thread answers: it is grpcio's own HTTP/2 and its own queue of events (`cygrpc`, which
`grpc.server` is written with), without what stands between. An answer that takes longer comes from elsewhere, later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, final

import grpc
from grpc._cython.cygrpc import (
    CompletionQueue,
    ReceiveCloseOnServerOperation,
    ReceiveMessageOperation,
    SendInitialMetadataOperation,
    SendMessageOperation,
    SendStatusFromServerOperation,
    Server,
)

if TYPE_CHECKING:
    from airserve.serve.guarding import Admitted, Allowance

Answer = Callable[["Call", bytes], "bytes | Future[bytes]"]
Arrived = Callable[["Call"], None]
Status = Callable[[Exception], tuple[grpc.StatusCode, str]]
NEVER_S = 1e12  # of time.time: gRPC says the end of all time where a client names no deadline
OPEN_S = 1.0  # that calls are given to end once they were cancelled
SILENT_S = 300.0  # without a message, however slowly it may be on its way: gRPC tells only of whole ones
SWEEP_S = 0.5
NOTHING: tuple[Any, ...] = ()
# gRPC proposal A6: ask again after so long. It tells a server that has no room from one that cannot be reached.
PUSHBACK = (("grpc-retry-pushback-ms", "1000"),)
log = logging.getLogger(__name__)
CLOSED = ReceiveCloseOnServerOperation  # an operation holds what it received: each is used once


@final
class Calls:
    """A listening server of `answers` by method; in `streams` a call has many messages, answered one after another.

    `arrived` hears of each call before its message has come, and refuses it by what it raises; `status` says what an
    exception is to the client. A call counts as under way while a message of it is answered, not while it says nothing:
    who may ask nothing takes nobody's place. Raises `OSError` where the address is taken.
    """

    def __init__(
        self,
        address: str,
        answers: dict[str, Answer],
        streams: Iterable[str],
        status: Status,
        *,
        arrived: Arrived,
        most: int,
        options: list[tuple[str, int]],
        credentials: Any = None,
    ) -> None:
        self.answers, self.streams, self.status, self.most = answers, frozenset(streams), status, most
        self._let_in = arrived
        self.under_way = self.open = 0  # messages that are answered; calls that have not ended
        self.silent: dict[Call, float] = {}  # calls that wait for a message, and since when: the eldest first
        self._queue = CompletionQueue()
        self._server = Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        given = () if credentials is None else (credentials._credentials,)
        try:
            self.port: int = self._server.add_http2_port(address.encode(), *given)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise OSError(f"{address} cannot be had for gRPC")
        self._draining, self._waits = False, 1  # for the next call, and later for the end
        self._ended, self._alive = threading.Event(), threading.Lock()  # not destroyed while another thread uses it
        self._server.start()
        self._server.request_call(self._queue, self._queue, self._arrived)
        threading.Thread(target=self._serve, name="grpc", daemon=True).start()

    async def drain(self, within_s: float) -> None:
        """Takes no new calls, finishes those under way, and ends."""
        self._waits += 1
        self._draining = True
        with self._alive:
            self._server.shutdown(self._queue, self._over)
        if not await asyncio.to_thread(self._ended.wait, within_s):
            with self._alive:
                if not self._ended.is_set():
                    self._server.cancel_all_calls()
            await asyncio.to_thread(self._ended.wait, OPEN_S)

    def _serve(self) -> None:
        poll = self._queue.poll
        sweep_s = time.time() + SWEEP_S
        while self._waits or self.open:
            event = poll(sweep_s)
            if event.tag is None:  # nothing has happened until then
                self._sweep(time.monotonic())
                sweep_s = time.time() + SWEEP_S
                continue
            try:
                event.tag(event)
            except Exception as error:
                log.error("a call failed in a way that no error names", exc_info=error)
            event = None  # holds its call, which is not to outlive its end
        with self._alive:
            self._server.destroy()
            self._ended.set()

    def _arrived(self, event: Any) -> None:
        if not event.success or event.call is None:
            self._waits -= 1
            return
        if self._draining:
            self._waits -= 1
        else:
            self._server.request_call(self._queue, self._queue, self._arrived)
        details = event.call_details
        method = details.method.decode("latin-1")
        call = Call(self, event.call, method, event.invocation_metadata, details.deadline)
        self.open += 1
        if method not in self.answers:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, f"{method[:80]} is not a method of this service.")
            return
        try:
            self._let_in(call)
        except Exception as error:
            call.refuse(*self.status(error))
            return
        if method in self.streams:
            call.begin_stream()
        else:
            self.silent[call] = call.arrived_s
            event.call.start_server_batch((ReceiveMessageOperation(0),), call.received)

    def _sweep(self, now_s: float) -> None:
        """Ends the calls that have said nothing for too long."""
        while self.silent:
            call, since_s = next(iter(self.silent.items()))
            if now_s - since_s < SILENT_S:
                break
            del self.silent[call]
            call.give_up(f"no message came for {SILENT_S:g} s; call again with one.")

    def _over(self, event: Any) -> None:
        self._waits -= 1


@final
class Call:
    """A call that has not ended. `metadata` has its last value for each name; `deadline_s` is of time.time.

    `echo` goes back with the answer, `ended` is called with the status when it goes. `admitted` is who asks and
    `allowance` what they may. For who is told of it: the `model` asked, and the seconds in the queue and at work, where
    there were any; in a stream those of its last message. `arrived_s` is when the last message had come.
    """

    __slots__ = (
        "_answer", "_call", "_calls", "_closing", "_counts", "_future", "admitted", "allowance", "arrived_s",
        "deadline_s", "echo", "ended", "metadata", "method", "model", "took_s",
    )  # fmt: skip

    def __init__(self, calls: Calls, call: Any, method: str, metadata: Any, deadline_s: float | None) -> None:
        self._calls, self._call, self.method = calls, call, method
        self._answer = calls.answers.get(method)
        self.metadata: dict[str, str | bytes] = dict(metadata)
        self.deadline_s = math.inf if deadline_s is None or deadline_s > NEVER_S else deadline_s
        self.arrived_s = time.monotonic()
        self.echo: tuple[tuple[str, str], ...] = NOTHING
        self.ended: Callable[[str, int], None] | None = None
        self.admitted: Admitted | None = None
        self.allowance: Allowance | None = None
        self.model, self.took_s = "", list[float]()
        self._closing = False  # the client's end is heard of apart from the answer's
        self._counts = 0  # among those under way
        self._future: Future[bytes] | None = None

    def left_s(self) -> float:
        """Until the client waits no longer."""
        return self.deadline_s - time.time()

    def give_up(self, sentence: str) -> None:
        """Ends a call that waits for a message, which then comes empty."""
        self._call.cancel(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], sentence)

    # one message, one answer

    def received(self, event: Any) -> None:
        calls = self._calls
        calls.silent.pop(self, None)
        message = event.batch_operations[0].message()
        if message is None:  # the client went away
            self.refuse(grpc.StatusCode.CANCELLED, "no message came.")
            return
        if calls.under_way >= calls.most:
            self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{calls.most} calls are under way; ask less often.")
            return
        self._counts = 1
        self.arrived_s = time.monotonic()  # what came before was the client's sending
        calls.under_way += 1
        try:
            assert self._answer is not None
            answer = self._answer(self, message)
        except Exception as error:
            self.refuse(*calls.status(error))
            return
        if isinstance(answer, bytes):
            self._reply(answer)
            return
        self._closing, self._future = True, answer
        calls.open += 1  # of what is heard of, for the end of the client is one more event
        self._call.start_server_batch((CLOSED(0),), self._client_closed)
        answer.add_done_callback(self._replied)

    def refuse(self, code: grpc.StatusCode, sentence: str) -> None:
        """Ends the call with a status."""
        if self.ended is not None:
            self.ended(code.name, 0)
        trailing = PUSHBACK if code is grpc.StatusCode.UNAVAILABLE else NOTHING
        status = SendStatusFromServerOperation(trailing, code.value[0], sentence.encode(), 0)
        self._finish((SendInitialMetadataOperation(self.echo, 0), status))

    def _reply(self, answer: bytes) -> None:
        if self.ended is not None:
            self.ended("OK", len(answer))
        status = SendStatusFromServerOperation(NOTHING, 0, b"", 0)
        self._finish((SendInitialMetadataOperation(self.echo, 0), SendMessageOperation(answer, 0), status))

    def _replied(self, future: Future[bytes]) -> None:
        """On the thread that made the answer."""
        self._future = None  # which leads back here
        try:
            answer = future.result()
        except CancelledError:
            self.refuse(grpc.StatusCode.CANCELLED, "the client has cancelled the call.")
        except Exception as error:
            self.refuse(*self._calls.status(error))
        else:
            self._reply(answer)

    def _finish(self, operations: tuple[Any, ...]) -> None:
        if not self._closing:
            operations = (*operations, CLOSED(0))
        self._call.start_server_batch(operations, self._finished)

    def _finished(self, event: Any) -> None:
        self._calls.open -= 1
        self._calls.under_way -= self._counts

    def _client_closed(self, event: Any) -> None:
        self._calls.open -= 1
        future = self._future
        if event.batch_operations[0].cancelled() and future is not None:
            future.cancel()

    # many messages

    def begin_stream(self) -> None:
        self._calls.silent[self] = self.arrived_s
        first = (SendInitialMetadataOperation(self.echo, 0), ReceiveMessageOperation(0))
        self._call.start_server_batch(first, self._heard)

    def _heard(self, event: Any) -> None:
        self._calls.silent.pop(self, None)
        message = next((one.message() for one in event.batch_operations if hasattr(one, "message")), None)
        if message is None:  # the client has said all
            status = SendStatusFromServerOperation(NOTHING, 0, b"", 0)
            self._call.start_server_batch((status, CLOSED(0)), self._finished)
            return
        assert self._answer is not None
        self._calls.under_way += 1
        self.arrived_s, self.model, self.took_s = time.monotonic(), "", []
        answer = self._answer(self, message)
        if isinstance(answer, bytes):
            self._say(answer)
        else:
            answer.add_done_callback(lambda future: self._say(future.result()))

    def _say(self, answer: bytes) -> None:
        self._call.start_server_batch((SendMessageOperation(answer, 0),), self._said)

    def _said(self, event: Any) -> None:
        self._calls.under_way -= 1
        self._calls.silent[self] = time.monotonic()
        with contextlib.suppress(Exception):  # a call that has ended says so with an empty message
            self._call.start_server_batch((ReceiveMessageOperation(0),), self._heard)
