"""The work of a site: a first-in first-out queue, a thread per core, and padding that emulates a slower site.

What waits may be done elsewhere (`handing`): it is taken out of the queue, and comes back to its head where that fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar, final

from airserve.linux import wake_at_once
from airserve.model import Array, Run

T = TypeVar("T")
log = logging.getLogger(__name__)
NICE = 5  # of the worker threads, below the loop's
TICK_S = 1e-3  # of uvloop's timers
LOOK = 2  # jobs at the front of the queue that are looked at, to be done elsewhere
QUEUE_LIMIT = 4096  # requests that wait; beyond it a client is told at once and not after its deadline


class Overloaded(RuntimeError):
    """The queue is full; the message is one sentence."""

    retry_s = 1.0  # when to ask again


class DeadlineExceeded(RuntimeError):
    """The request waited beyond its deadline and was not started; the message is one sentence."""


class Done(NamedTuple, Generic[T]):
    """A result with the time from the request's arrival to the start of work, and from there to its end."""

    result: T
    queue_s: float
    compute_s: float


class Parcel(NamedTuple):
    """What another process needs to do the same work: the checked inputs of a version of a model (a `Served`)."""

    served: Any
    ordered: Sequence[Array]


@final
class Padded:
    """Functions that run one after another on one core, each lasting at least its `padded_s`.

    The core is held while it sleeps, for the emulated site is busy then. A run that takes longer than its padding
    is an overrun: this machine is too slow to be that site, and `overruns` counts it.

    >>> work = Padded([(lambda inputs: [inputs[0] + 1], None), (lambda inputs: [inputs[0] * 2], 0.01)])
    >>> begun_s = time.monotonic()
    >>> work([3]), time.monotonic() - begun_s >= 0.01, work.overruns
    ([8], True, 0)
    """

    def __init__(self, steps: Sequence[tuple[Run, float | None]]) -> None:
        self._steps = tuple(steps)
        self._lock = threading.Lock()
        self.plain = len(steps) == 1 and steps[0][1] is None  # one Function, as fast as it is
        self.padded_s = sum(padded_s or 0.0 for _, padded_s in steps)
        self.overruns = 0
        self.worst_overrun_s = 0.0

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        values = list(inputs)
        begun_s = now_s = time.monotonic()
        needed_s = 0.0
        for run, padded_s in self._steps:
            values = run(values)
            before_s, now_s = now_s, time.monotonic()
            needed_s += now_s - before_s if padded_s is None else padded_s
        # One sleep for all steps, so that the lateness of waking up is paid once.
        if (left_s := begun_s + needed_s - now_s) > 0:
            time.sleep(left_s)
        elif left_s < 0:
            with self._lock:
                self.overruns += 1
                self.worst_overrun_s = max(self.worst_overrun_s, -left_s)
        return values


@final
class Workers:
    """`cores` threads that take work from one queue in the order in which it came. Made inside a running loop."""

    def __init__(self, cores: int, name: str = "core") -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Job] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()  # one for each job at least: a thread looks for one, or ends
        self.cores = cores
        self.limit = QUEUE_LIMIT  # of jobs that wait
        self.held = 0  # jobs that wait or run; touched by the loop's thread only
        self.load: memoryview[int] = memoryview(bytearray(8)).cast("q")  # the same, for other processes to see
        self.relieve: Callable[[], None] | None = None  # told when more is held than there are cores
        self._due_s = math.inf  # no deadline of what waits is earlier
        self._timer: asyncio.TimerHandle | None = None
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{k}", daemon=True) for k in range(cores)]
        for thread in self._threads:
            thread.start()

    @property
    def idle(self) -> bool:
        """Whether a core is free: nothing waits then, and work may run on the loop without passing another."""
        return self.held < self.cores

    async def run(
        self, work: Callable[[], T], arrived_s: float, deadline_s: float, parcel: Parcel | None = None
    ) -> Done[T]:
        """The result of `work` when a core was free for it; times are of `time.monotonic`.

        With a `parcel` it may be done elsewhere.

        Raises `Overloaded` where the queue is full, `DeadlineExceeded` where the deadline passed before the start, and
        whatever `work` raises.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        job = self.put(work, deadline_s, lambda _: None if future.done() else future.set_result(None), parcel)
        try:
            await future
        except asyncio.CancelledError:
            self.drop(job)
            raise
        return job.done(arrived_s)

    def put(
        self,
        work: Callable[[], Any],
        deadline_s: float,
        told: Callable[[Job], None],
        parcel: Parcel | None = None,
    ) -> Job:
        """As `run`, but for who wants to be told, in the loop, and to make nothing of it in between.

        Raises `Overloaded`.
        """
        if self.held >= self.cores + self.limit:
            raise Overloaded(f"{self.limit} requests wait already; ask less often or add cores.")
        job = Job(work, deadline_s, told, parcel)
        if deadline_s < self._due_s and not self.idle:
            self._look_at(deadline_s)
        self._jobs.append(job)
        self._hold(+1)
        self._calls.put(True)
        self._seek_relief()
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for it any more."""
        if not job.over:
            job.over = True
            self._leave(job)

    def take(self, fits: Callable[[Parcel], bool]) -> Job | None:
        """The oldest job that waits and fits, to be done elsewhere, of the first ones.

        What a sibling has handed here stays here, and does not keep what is behind it.
        """
        if self.held <= self.cores:
            return None
        for k in range(LOOK):
            try:
                job = self._jobs[k]
            except IndexError:  # the threads were quicker
                return None
            if job.parcel is not None and not job.over and fits(job.parcel) and self._leave(job):
                return job
        return None

    def give_back(self, job: Job) -> None:
        """What was taken has not been done: it is the first to be done here, where somebody still waits for it."""
        if job.over:
            return
        self._jobs.appendleft(job)
        self._hold(+1)
        self._calls.put(True)
        if job.deadline_s < self._due_s:
            self._look_at(job.deadline_s)

    def settle(self, job: Job, result: Any, started_s: float, ended_s: float) -> None:
        """What was taken has been done elsewhere, with this result."""
        job.result, job.started_s, job.ended_s = result, started_s, ended_s
        job.end()

    def close(self) -> None:
        """Ends the threads once the queue is empty; call it when nothing is awaited any more."""
        if self._timer is not None:
            self._timer.cancel()
        for _ in self._threads:
            self._calls.put(False)
        for thread in self._threads:
            thread.join()

    def _hold(self, more: int) -> None:
        self.held += more
        self.load[0] = self.held

    def _leave(self, job: Job) -> bool:
        """Gives up a job's place in the queue; False where it has none any more."""
        try:
            self._jobs.remove(job)  # at once to the threads: jobs are compared without a line of Python
        except ValueError:
            return False
        self._hold(-1)
        return True

    def _look_at(self, due_s: float) -> None:
        """Looks for who is late at that time. One timer for all that wait: one for each costs 7 us."""
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._loop.call_later(max(due_s - time.monotonic(), 0.0), self._expire)

    def _expire(self) -> None:
        """Ends the wait of those whose deadline has come; what has begun is finished all the same."""
        self._timer, self._due_s = None, math.inf
        now_s = time.monotonic()
        for job in self._jobs.copy():
            if job.deadline_s > now_s + TICK_S:
                self._due_s = min(self._due_s, job.deadline_s)
            elif self._leave(job):
                job.started_s, job.late = now_s, True
                job.end()
        if self._due_s < math.inf:
            self._look_at(self._due_s)

    def _seek_relief(self) -> None:
        if self.relieve is not None and self.held > self.cores:
            self.relieve()

    def _work(self) -> None:
        if sys.platform == "linux":
            wake_at_once()
            # The loop takes in and answers requests in microseconds; it is not to wait for a core behind an engine.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while self._calls.get():
            try:
                job = self._jobs.popleft()
            except IndexError:  # it was taken
                continue
            job.started_s = time.monotonic()
            job.late = job.started_s > job.deadline_s
            if not job.late and not job.over:
                try:
                    job.result = job.work()
                except Exception as error:
                    job.error = error
            job.ended_s = time.monotonic()
            self._loop.call_soon_threadsafe(self._finish, job)
            del job  # a request and its answer, which may be large, and the next may be long in coming

    def _finish(self, job: Job) -> None:
        self._hold(-1)
        job.end()
        self._seek_relief()


@final
class Job:
    """Work that waits, and what became of it. `told` hears of its end, unless it was dropped."""

    __slots__ = ("deadline_s", "ended_s", "error", "late", "over", "parcel", "result", "started_s", "told", "work")

    def __init__(
        self, work: Callable[[], Any], deadline_s: float, told: Callable[[Job], None], parcel: Parcel | None
    ) -> None:
        self.work = work
        self.deadline_s = deadline_s
        self.told = told
        self.parcel = parcel
        self.over = False  # it has ended, or nobody waits for it
        self.result: Any = None
        self.error: Exception | None = None
        self.late = False
        self.started_s = self.ended_s = 0.0

    def end(self) -> None:
        if not self.over:
            self.over = True
            try:
                self.told(self)
            except Exception as error:
                log.error("who waited for an answer could not be told", exc_info=error)

    def done(self, arrived_s: float) -> Done[Any]:
        """What became of it. Raises `DeadlineExceeded`, and what the work raised."""
        if self.error is not None:
            raise self.error
        if self.late:
            raise DeadlineExceeded(
                f"the request waited {1e3 * (self.started_s - arrived_s):.0f} ms for a core and its deadline passed; "
                "ask less often, allow more time or add cores."
            )
        return Done(self.result, self.started_s - arrived_s, self.ended_s - self.started_s)
