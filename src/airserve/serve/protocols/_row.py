"""The answers of one connection, which leave in the order of its requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import final

from airserve.serve.protocols._limits import Limits, Share
from airserve.serve.protocols._pending import Pending, Slot
from airserve.serve.protocols._streaming import LAST, Stream, chunk

# A whole HTTP response: at once, by the end of the loop's turn, or later; or a stream of its parts.
Given = bytes | Pending | Awaitable[bytes | Stream]
Failed = Callable[[Exception], bytes]  # the response to an exception


@final
class Row:
    """A place for each request that was read: answers fill them as they come, and none overtakes another.

    It ends the connection, once nothing more is read (`closing`) or, with `draining`, nothing is half-way in
    (`reading`). A full row, or a client that leaves its answers unread, stops the reading.
    """

    def __init__(self, failed: Failed, limits: Limits, share: Share) -> None:
        self._failed = failed
        self._limits = limits
        self._share = share
        self.transport: asyncio.Transport | None = None
        self.places: deque[Slot | Pending] = deque()
        self.closing = self.draining = self.reading = False
        self.paused = self.full = self.lingering = False
        self._resumed: asyncio.Future[None] | None = None  # what a stream waits for while its client reads too slowly
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, slot: Slot, answer: Given) -> None:
        """Puts an answer at the end, where it is there already or when it is."""
        self.places.append(slot)
        if isinstance(answer, bytes):
            self._fill(slot, answer)
        elif isinstance(answer, Pending):
            slot.pending = answer
            answer.settled = lambda pending: self._fill(slot, pending.response or b"")
            self.throttle()
        else:
            task = asyncio.get_running_loop().create_task(self._later(slot, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.throttle()

    def settled(self, pending: Pending) -> None:
        """The response of a place of its own is there."""
        places, transport = self.places, self.transport
        if len(places) > 1 or self.closing or self.draining or self.full or transport is None:
            self.flush()
        else:  # nearly always: the only one, and nothing else to see to
            places.clear()
            transport.write(pending.response or b"")

    def end_with(self, answer: Given) -> None:
        """The last answer; the client may go on sending for a moment, for a reset would take the answer from it."""
        self.closing = True
        self.place(Slot(lingers=True), answer)

    def flush(self) -> None:
        """Sends the answers at the front that are there."""
        transport = self.transport
        if transport is None:
            return
        while self.places and (response := self.places[0].response) is not None:
            slot = self.places.popleft()
            transport.write(response)
            if slot.lingers:
                self.lingering = True
                transport.write_eof() if transport.can_write_eof() else transport.close()
                asyncio.get_running_loop().call_later(self._limits.linger_s, self.abort)
                return
        if self.places and (turn := self.places[0].turn) is not None and not turn.done():
            turn.set_result(None)
        if not self.places and not self.lingering and (self.closing or (self.draining and not self.reading)):
            self.closing = True
            transport.close()
        elif self.full:
            self.throttle()

    def throttle(self) -> None:
        """Reads no further while too much waits to be answered or to be sent."""
        full = self.paused or len(self.places) >= self._limits.pipeline
        if full != self.full and self.transport is not None:
            self.full = full
            if full:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def pause(self, paused: bool) -> None:
        """The client leaves its answers unread, or does no longer."""
        self.paused = paused
        if not paused and self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self.throttle()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def lost(self) -> None:
        """The connection has ended."""
        self.closing, self.transport = True, None
        self._share.let_go(self._share.held_bytes)
        for task in list(self._tasks):
            task.cancel()
        for place in self.places:
            if (pending := place if isinstance(place, Pending) else place.pending) is not None:
                pending.abandon()
        self.places.clear()

    def _fill(self, slot: Slot, response: bytes) -> None:
        slot.pending = None
        if slot.held_bytes:
            self._share.let_go(slot.held_bytes)
        if slot.stays:
            response = response.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1)
        elif slot.lingers:
            response = response.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        slot.response = response[: response.index(b"\r\n\r\n") + 4] if slot.bare else response
        self.flush()

    async def _later(self, slot: Slot, answer: Awaitable[bytes | Stream]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(error)
        if isinstance(response, Stream):
            self._share.let_go(slot.held_bytes)
            await self._pass(slot, response)
        else:
            self._fill(slot, response)

    async def _pass(self, slot: Slot, stream: Stream) -> None:
        """Sends a stream in its turn, as fast as it is made and read."""
        loop = asyncio.get_running_loop()
        old = slot.head is not None and slot.head.old
        slot.turn = loop.create_future()
        try:
            self.flush()
            await slot.turn
            self._write(stream.head(chunked=not old))
            async for part in stream.parts:
                while self.paused:
                    self._resumed = loop.create_future()
                    await self._resumed
                self._write(part if old else chunk(part))
            self._write(b"" if old else LAST)
        except Exception as error:
            self._failed(error)  # for its log: what has been sent cannot be taken back
            return self.abort()  # so that the client sees an answer without an end
        finally:
            await stream.close()
        self.closing = self.closing or old
        if self.places:  # the connection is there
            self.places.popleft()
        self.flush()

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
