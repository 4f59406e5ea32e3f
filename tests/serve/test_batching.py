"""The queue of a site against M/D/1, padding against the clock, and what happens to work that is late or too much."""

import asyncio
import itertools
import math
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from airserve.contract import Endpoint, SiteProcess
from airserve.model import Function
from airserve.serve import batching
from airserve.serve.batching import DeadlineExceeded, Overloaded, Padded, Parcel, Workers
from airserve.serve.service import Service

pytestmark = pytest.mark.realtime

PADDED_S = 0.005
X = {"x": np.zeros((1, 4), "float32")}


def site(graphs: dict[str, Path], cores: int, padded_s: float | None) -> SiteProcess:
    function = Function("whole", "model", str(graphs["whole"]), padded_s)
    return SiteProcess("mast", "127.0.0.1", 0, cores, (Endpoint("whole", (function,)),))


async def drive(service: Service, due_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival, queue and compute time in seconds of requests that are asked at these times."""
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future] = []
    begun_s = time.monotonic()

    async def one(arrived_s: float) -> tuple[float, float, float]:
        reply = await service.infer("whole", X, arrived_s=arrived_s)
        return arrived_s - begun_s, reply.timings[0].ms / 1e3, reply.timings[1].ms / 1e3

    def send() -> None:  # on a thread of its own, for uvloop's timers count whole milliseconds
        for at_s in due_s:
            if (left_s := begun_s + at_s - time.monotonic()) > 0:
                time.sleep(left_s)
            answers.append(asyncio.run_coroutine_threadsafe(one(time.monotonic()), loop))

    await asyncio.to_thread(send)
    columns = np.array([await asyncio.wrap_future(answer) for answer in answers]).T
    return columns[0], columns[1], columns[2]


def lindley(arrived_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Waiting times of a single server, first in first out: W' = max(0, W + S - A). Lindley 1952."""
    waits = np.zeros(len(arrived_s))
    for k in range(1, len(arrived_s)):
        waits[k] = max(0.0, waits[k - 1] + service_s[k - 1] - (arrived_s[k] - arrived_s[k - 1]))
    return waits


@pytest.mark.realtime
def test_waiting_is_that_of_m_d_1(graphs):
    rho = 0.5
    expected_s = rho * PADDED_S / (2 * (1 - rho))
    many_s = np.cumsum(np.random.default_rng(0).exponential(PADDED_S / rho, 100_000))
    assert lindley(many_s, np.full(len(many_s), PADDED_S)).mean() == pytest.approx(expected_s, rel=0.03)
    gaps_s = np.random.default_rng(0).exponential(PADDED_S / rho, 300)

    async def run():
        service = Service(site(graphs, 1, PADDED_S))
        columns = await drive(service, np.cumsum(gaps_s))
        service.close()
        return columns

    arrived_s, queue_s, compute_s = uvloop.run(run())
    # The same arrivals and services through a queue by hand: what is left is the wake-up of a thread.
    by_hand_s = lindley(arrived_s, compute_s)
    assert (queue_s >= by_hand_s - 1e-4).all()
    assert np.median(queue_s - by_hand_s) < PADDED_S / 2


def test_two_cores_serve_two_at_once_in_order_of_arrival():
    async def run():
        workers, now_s, begun, both = Workers(2), time.monotonic(), [], threading.Barrier(2, timeout=30)

        def work(name):
            begun.append(name)
            both.wait()  # passes where two are at work

        jobs = [workers.run(partial(work, name), now_s, now_s + 60) for name in range(6)]
        done = await asyncio.gather(*jobs)
        workers.close()
        return begun, done

    begun, done = uvloop.run(run())
    assert [set(begun[k : k + 2]) for k in (0, 2, 4)] == [{0, 1}, {2, 3}, {4, 5}]
    assert all(one.queue_s <= later.queue_s + later.compute_s for one, later in itertools.pairwise(done))


class Clock:
    """In place of `time` in batching: it goes on when somebody works or sleeps."""

    def __init__(self):
        self.now_s, self.slept_s = 100.0, []

    def monotonic(self):
        return self.now_s

    def work(self, took_s):
        def run(inputs):
            self.now_s += took_s
            return list(inputs)

        return run

    def sleep(self, for_s):
        self.slept_s.append(for_s)
        self.now_s += for_s


@given(st.lists(st.tuples(st.floats(0, 0.1), st.none() | st.floats(0, 0.1)), min_size=1, max_size=4))
def test_padding_lasts_as_long_as_asked_and_no_shorter(steps):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "time", clock)
        padded = Padded([(clock.work(took_s), padded_s) for took_s, padded_s in steps])
        assert padded([7]) == [7]
    took_s = sum(took_s for took_s, _ in steps)
    wanted_s = sum(took_s if padded_s is None else padded_s for took_s, padded_s in steps)
    assert clock.now_s - 100 == pytest.approx(max(took_s, wanted_s), abs=1e-9)
    assert len(clock.slept_s) <= 1  # the lateness of waking up is paid once
    if abs(took_s - wanted_s) > 1e-9:
        assert padded.overruns == (took_s > wanted_s)
    assert padded.worst_overrun_s == pytest.approx(max(0, took_s - wanted_s), abs=1e-9)


def test_a_padded_service_holds_its_core_for_so_long(graphs):
    async def run():
        service = Service(site(graphs, 1, 0.02))
        now_s = time.monotonic()
        replies = await asyncio.gather(*(service.infer("whole", X, arrived_s=now_s) for _ in range(5)))
        counts = service.endpoint("whole").counts
        service.close()
        return replies, counts

    replies, counts = uvloop.run(run())
    queue_s, compute_s = np.array([[timing.ms / 1e3 for timing in reply.timings] for reply in replies]).T
    assert compute_s.min() >= 0.02
    assert (np.diff(queue_s) >= 0.02 - 1e-9).all()
    assert counts.answered == 5
    assert counts.compute_s == pytest.approx(compute_s.sum())


def test_late_work_is_not_started_and_the_rest_is_in_order():
    async def run():
        workers, free, done = Workers(1), threading.Event(), []
        now_s = time.monotonic()

        def work(name):
            assert free.wait(30)
            done.append(name)
            return name

        jobs = {"first": 60.0, "late": 0.0, "gone": 60.0, "last": 60.0}
        first, late, gone, last = (
            asyncio.ensure_future(workers.run(partial(work, name), now_s, now_s + within_s))
            for name, within_s in jobs.items()
        )
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(DeadlineExceeded, match="waited"):  # while the first is at work
            await late
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert workers.load[0] == workers.held == 2, "who is late or gone holds no place"
        free.set()
        assert (await first).result == "first"
        assert (await last).result == "last"
        assert workers.idle
        workers.close()
        return done

    assert uvloop.run(run()) == ["first", "last"]


def test_each_of_many_is_told_of_a_deadline_of_its_own():
    async def run():
        workers, free, now_s, ended = Workers(1), threading.Event(), time.monotonic(), []

        async def one(within_s):
            try:
                await workers.run(free.wait, now_s, now_s + within_s)
            except DeadlineExceeded:
                ended.append(within_s)

        first = asyncio.ensure_future(workers.run(free.wait, now_s, math.inf))
        await asyncio.sleep(0)
        await asyncio.gather(*(one(within_s) for within_s in (0.06, 0.02, 0.1, 0.0, 0.02)))
        assert workers.held == 1
        free.set()
        await first
        workers.close()
        return ended

    assert sorted(uvloop.run(run())) == [0.0, 0.02, 0.02, 0.06, 0.1]


def test_what_is_taken_and_comes_back_to_nobody_holds_no_place():
    async def run():
        workers, free, now_s = Workers(1), threading.Event(), time.monotonic()
        parcel = Parcel(None, ())
        first = asyncio.ensure_future(workers.run(free.wait, now_s, math.inf))
        late, gone = (
            asyncio.ensure_future(workers.run(free.wait, now_s, deadline_s, parcel)) for deadline_s in (now_s, math.inf)
        )
        await asyncio.sleep(0)
        while len(workers._jobs) > 2:  # the thread has the first
            time.sleep(0.001)  # before the loop looks at the clock
        taken = [workers.take(lambda _: True), workers.take(lambda _: True)]
        gone.cancel()
        await asyncio.sleep(0.01)
        assert not late.done(), "it may be answered elsewhere"
        for job in taken:
            workers.give_back(job)  # after the look for who is late
        with pytest.raises(DeadlineExceeded):
            await late
        assert workers.held == 1
        free.set()
        await first
        workers.close()

    uvloop.run(run())


def test_what_is_taken_out_of_the_queue_may_come_back_to_its_head():
    async def run():
        workers, free, done = Workers(1), threading.Event(), []
        parcel = Parcel(None, ())

        def work(name):
            assert free.wait(30)
            done.append(name)
            return name

        jobs = [
            asyncio.ensure_future(workers.run(partial(work, name), 0.0, math.inf, parcel if name != 3 else None))
            for name in range(5)
        ]
        await asyncio.sleep(0)
        while len(workers._jobs) > 4:  # the thread has the first
            await asyncio.sleep(0.001)
        one, two = workers.take(lambda _: True), workers.take(lambda _: True)
        assert workers.take(lambda _: False) is None
        four = workers.take(lambda _: True)  # the one before it has no parcel: it was handed here, and stays
        assert workers.take(lambda _: True) is None
        assert workers.load[0] == workers.held == 2
        workers.settle(two, "elsewhere", 0.0, 0.0)
        workers.give_back(four)
        workers.give_back(one)
        free.set()
        results = [one.result for one in await asyncio.gather(*jobs)]
        workers.close()
        return done, results

    done, results = uvloop.run(run())
    assert done == [0, 1, 4, 3]
    assert results == [0, 1, "elsewhere", 3, 4]


def test_a_full_queue_says_so_and_work_may_fail(monkeypatch):
    monkeypatch.setattr(batching, "QUEUE_LIMIT", 2)

    async def run():
        workers = Workers(1)
        now_s = time.monotonic()

        def fails():
            time.sleep(0.02)
            raise ValueError("as it should")

        tasks = [asyncio.ensure_future(workers.run(fails, now_s, now_s + 10)) for _ in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        workers.close()
        return results

    results = uvloop.run(run())
    assert [type(one) for one in results] == [ValueError, ValueError, ValueError, Overloaded]


def test_cheap_work_runs_on_the_loop_only_when_a_core_is_free(graphs):
    async def run():
        service = Service(site(graphs, 1, None))
        assert service.endpoint("whole").cheap
        at_once = service.inline(service.endpoint("whole"), X, arrived_s=time.monotonic())
        assert at_once is not None
        free = threading.Event()
        waiting = asyncio.ensure_future(service.workers.run(lambda: free.wait(30), 0, time.monotonic() + 60))
        await asyncio.sleep(0)
        assert service.inline(service.endpoint("whole"), X, arrived_s=time.monotonic()) is None
        asked = asyncio.ensure_future(service.infer("whole", X))
        await asyncio.sleep(0.01)
        assert not asked.done()
        free.set()
        reply = await asked
        np.testing.assert_array_equal(reply.outputs[0][1], at_once.outputs[0][1])
        assert reply.timings[0].ms > 5
        assert await waiting
        service.close()
        padded = Service(site(graphs, 1, 0.001))
        assert padded.inline(padded.endpoint("whole"), X, arrived_s=0) is None
        padded.close()

    uvloop.run(run())
