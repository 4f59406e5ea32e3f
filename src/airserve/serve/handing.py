"""A costly request goes to a worker that is idle, whichever worker its connection came to.

The kernel deals out connections, not requests: one gRPC channel, or a few busy connections, would keep one core. So a
worker whose engine is taken hands the oldest request that waits to a sibling that holds nothing, as a table in shared
memory tells, and the next of the same model while that one is at work: over a Unix socket, the tensors as they lie in
memory. A request is never lost to that and never answered twice: what a sibling refuses, fails or does not answer in
time is taken back, and done here. It is counted here alone.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np

from airserve.model import Array, Tensor
from airserve.serve.batching import Job, Parcel
from airserve.tensors import DATATYPE, NUMPY

if TYPE_CHECKING:
    from airserve.serve.served import Served
    from airserve.serve.service import Service

PATIENCE_S = 0.5  # for an answer, beside what the work lasts
TIMES = 8.0  # as long as the work may last elsewhere; then it is taken back
AHEAD = 2  # requests that a sibling is given: while one is done the next is on its way
REFUSED_S, LOST_S = 0.02, 0.5  # a sibling that has refused, or was lost, is left alone
PREFIX = struct.Struct("<QQQ")  # which request, bytes of the header (JSON), bytes of header and tensors
ALIGNED = 16  # bytes; where a tensor begins
BACKLOG = 64
PEER = struct.Struct("3i")  # SO_PEERCRED: process, user, group


@final
class Siblings:
    """What the workers of a service know of each other. Made before they are forked, it is one table to all of them.

    >>> siblings = Siblings(workers=2)
    >>> siblings.free(1), siblings.come(1), siblings.free(1)
    (False, None, True)
    >>> siblings.load(1)[0] = 3
    >>> siblings.free(1)
    False
    """

    def __init__(self, workers: int) -> None:
        self.count = workers
        self._secret = secrets.token_hex(16)
        self._cells: memoryview[int] = memoryview(mmap.mmap(-1, 16 * workers)).cast("q")

    def address(self, worker: int) -> str:
        """Where a worker listens: a name that is no file, and is free when the worker has died."""
        return f"\0airserve-{self._secret}-{worker}"

    def load(self, worker: int) -> memoryview[int]:
        """The number of jobs that a worker holds, which it alone writes."""
        return self._cells[2 * worker + 1 : 2 * worker + 2]

    def free(self, worker: int, ahead: int = 0) -> bool:
        """Whether it may be asked, and holds no more than `ahead` jobs."""
        return self._cells[2 * worker] == 1 and self._cells[2 * worker + 1] <= ahead

    def come(self, worker: int) -> None:
        """It may be asked."""
        self._cells[2 * worker + 1] = 0
        self._cells[2 * worker] = 1

    def gone(self, worker: int) -> None:
        """It is not to be asked any more."""
        self._cells[2 * worker] = 0


class _Heard(NamedTuple):
    number: int
    header: list[Any]
    data: memoryview  # of the tensors


class _Asked(NamedTuple):
    served: Served
    future: asyncio.Future[_Heard | None]


@final
class Line(asyncio.BufferedProtocol):
    """A connection between two workers. `heard` is told of each message, `ended` of the end."""

    def __init__(self, heard: Callable[[Line, _Heard], None], ended: Callable[[], None]) -> None:
        self._heard, self._ended = heard, ended
        self.under_way = 0  # of what was asked over it
        self._prefix = bytearray(PREFIX.size)
        self._into, self._filled, self._number, self._header = memoryview(self._prefix), 0, -1, 0
        self._transport: asyncio.Transport | None = None

    def say(self, number: int, header: list[Any], arrays: Sequence[Array] = ()) -> None:
        """A message; the arrays are not to change until it has gone."""
        if self._transport is None or self._transport.is_closing():
            return
        text = json.dumps(header).encode()
        parts: list[bytes | memoryview] = [text.ljust(_aligned(len(text)))]
        for array in arrays:
            if array.nbytes:
                parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                parts.append(b"\0" * (_aligned(array.nbytes) - array.nbytes))
        size = sum(len(part) for part in parts)
        self._transport.writelines([PREFIX.pack(number, len(parts[0]), size), *parts])

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not _ours(transport.get_extra_info("socket")):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._into):
            return
        self._filled = 0
        if self._number < 0:
            self._number, self._header, size = PREFIX.unpack(self._prefix)
            self._into = memoryview(bytearray(size))
        else:
            whole, number = self._into, self._number
            self._into, self._number = memoryview(self._prefix), -1
            text, data = whole[: self._header], whole[self._header :]
            self._heard(self, _Heard(number, json.loads(bytes(text)), data))


@final
class Hands:
    """A worker's way to its siblings, and theirs to it. Made inside a running loop."""

    def __init__(self, siblings: Siblings, worker: int, service: Service) -> None:
        self._siblings, self._worker, self._service = siblings, worker, service
        self._others = [(worker + 1 + k) % siblings.count for k in range(siblings.count - 1)]
        self._lines: dict[int, Line] = {}
        # By sibling, what it was asked and has not answered: one request to do, and one to do next.
        self._asked: dict[int, dict[int, _Asked]] = {other: {} for other in self._others}
        self._not_before_s: dict[int, float] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.handed = self.returned = 0  # requests that a sibling has answered, and that came back

    async def open(self) -> None:
        """Be asked, and ask, from now on."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(self._siblings.address(self._worker))
        listening.listen(BACKLOG)

        def accepted() -> Line:
            return Line(self._asked_for, lambda: None)

        self._server = await asyncio.get_running_loop().create_unix_server(accepted, sock=listening)
        workers = self._service.workers
        workers.load = self._siblings.load(self._worker)
        self._siblings.come(self._worker)
        workers.load[0] = workers.held
        workers.relieve = self._relieve

    def leave(self) -> None:
        """Be asked no more, and hand nothing on; what is under way is answered."""
        self._siblings.gone(self._worker)
        self._service.workers.relieve = None

    def close(self) -> None:
        """End all connections, once nothing is awaited any more."""
        self.leave()
        for task in self._tasks:
            task.cancel()
        for line in self._lines.values():
            line.abort()
        if self._server is not None:
            self._server.close()

    # what is handed to a sibling

    def _relieve(self) -> None:
        workers, now_s = self._service.workers, time.monotonic()
        for ahead in range(AHEAD):  # to all that are idle, before one is asked for more
            for other in self._others:
                asked = self._asked[other]
                if len(asked) != ahead or now_s < self._not_before_s.get(other, 0.0):
                    continue
                if not self._siblings.free(other, ahead):
                    continue
                if ahead and (other not in self._lines or workers.held <= workers.cores + ahead):
                    continue  # what waits alone here is begun here as soon as there
                job = workers.take(partial(_goes_behind, asked))
                if job is None:
                    continue
                assert job.parcel is not None
                self._number += 1
                asked[self._number] = _Asked(job.parcel.served, asyncio.get_running_loop().create_future())
                self._spawn(self._hand(other, self._number, job))

    async def _hand(self, other: int, number: int, job: Job) -> None:
        assert job.parcel is not None
        future = self._asked[other][number].future
        heard, pause_s = None, LOST_S
        try:
            served: Served = job.parcel.served
            async with asyncio.timeout(PATIENCE_S + TIMES * served.lasts_s):
                line = self._lines.get(other) or await self._connect(other)
                shapes = [array.shape for array in job.parcel.ordered]
                line.say(number, [served.mark, job.deadline_s, shapes], job.parcel.ordered)
                if self._service.workers.relieve is not None:
                    self._relieve()  # the next one
                heard = await future
            if heard is not None and not heard.header:
                heard, pause_s = None, REFUSED_S
        except OSError:  # TimeoutError is one: it hangs, or so it seems
            pass
        finally:
            del self._asked[other][number]
        if heard is None:
            self.returned += 1
            self._not_before_s[other] = time.monotonic() + pause_s
            if pause_s == LOST_S:
                self._lose(other)
            self._service.workers.give_back(job)
        else:
            self.handed += 1
            started_s, ended_s, shapes = heard.header
            self._service.workers.settle(job, _arrays(served.outputs, shapes, heard.data), started_s, ended_s)
        if (relieve := self._service.workers.relieve) is not None and not self._service.workers.idle:
            relieve()

    async def _connect(self, other: int) -> Line:
        """A connection to a sibling. Raises `OSError`."""
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            one.setblocking(False)
            one.connect(self._siblings.address(other))

            def ended() -> None:
                if self._lines.get(other) is made:
                    self._lose(other)

            def answered(line: Line, heard: _Heard) -> None:
                asked = self._asked[other].get(heard.number)
                if asked is not None and not asked.future.done():
                    asked.future.set_result(heard)

            made = Line(answered, ended)
            await asyncio.get_running_loop().create_unix_connection(lambda: made, sock=one)
        except BaseException:
            one.close()
            raise
        self._lines[other] = made
        return made

    def _lose(self, other: int) -> None:
        """What a sibling may still say is heard by nobody."""
        if (line := self._lines.pop(other, None)) is not None:
            line.abort()
        for asked in reversed(self._asked[other].values()):  # the oldest comes back last, to the head of the queue
            if not asked.future.done():
                asked.future.set_result(None)

    # what a sibling hands over

    def _asked_for(self, line: Line, heard: _Heard) -> None:
        mark, deadline_s, shapes = heard.header
        served = next((one for one in self._service.served if one.mark == mark), None)
        workers = self._service.workers
        room = line.under_way < workers.cores - 1 + AHEAD and workers.held - line.under_way < workers.cores
        if served is None or not room or workers.relieve is None:  # it is behind its own kind, or nothing
            line.say(heard.number, [])
        else:
            line.under_way += 1
            parcel = Parcel(served, _arrays(served.inputs, shapes, heard.data))
            self._spawn(self._compute(line, heard.number, parcel, deadline_s))

    async def _compute(self, line: Line, number: int, parcel: Parcel, deadline_s: float) -> None:
        now_s = time.monotonic()
        try:
            done = await self._service.workers.run(lambda: parcel.served.run(parcel.ordered), now_s, deadline_s)
        except Exception:  # late, or the engine refuses it: the one who was asked says so in its own words
            line.say(number, [])
            return
        finally:
            line.under_way -= 1
        began_s, shapes = now_s + done.queue_s, [array.shape for array in done.result]
        line.say(number, [began_s, began_s + done.compute_s, shapes], done.result)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _goes_behind(asked: Mapping[int, _Asked], parcel: Parcel) -> bool:
    """Whether a request may wait at a sibling for what that was asked: it takes no longer than itself."""
    return all(one.served is parcel.served for one in asked.values())


def _arrays(tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], data: memoryview) -> list[Array]:
    """Views of the bytes that `Line.say` wrote."""
    arrays, at = [], 0
    for tensor, shape in zip(tensors, shapes, strict=True):
        array: Array = np.ndarray(shape, NUMPY[DATATYPE[tensor.dtype]], data, at)
        arrays.append(array)
        at += _aligned(array.nbytes)
    return arrays


def _aligned(size: int) -> int:
    """
    >>> _aligned(0), _aligned(1), _aligned(16)
    (0, 16, 16)
    """
    return -(-size // ALIGNED) * ALIGNED


def _ours(connected: socket.socket) -> bool:
    """Whether a process of this user is at the other end."""
    peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return bool(PEER.unpack(peer)[1] == os.getuid())
