"""The queue of a site against M/D/1, padding against the clock, and what happens to work that is late or too much."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
import uvloop

from airserve.contract import Endpoint, SiteProcess
from airserve.model import Function
from airserve.serve import batching
from airserve.serve.batching import DeadlineExceeded, Overloaded, Padded, Workers
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


def test_waiting_is_that_of_m_d_1(graphs):
    rho = 0.5
    gaps_s = np.random.default_rng(0).exponential(PADDED_S / rho, 1000)

    async def run():
        service = Service(site(graphs, 1, PADDED_S))
        columns = await drive(service, np.cumsum(gaps_s))
        service.close()
        return columns

    arrived_s, queue_s, compute_s = uvloop.run(run())
    expected_s = rho * PADDED_S / (2 * (1 - rho))
    # A thousand arrivals sample the mean of the closed form with a standard error of about 10 %.
    ideal_s = lindley(np.cumsum(gaps_s), np.full(len(gaps_s), PADDED_S)).mean()
    assert ideal_s == pytest.approx(expected_s, rel=0.25)
    # The same arrivals and services through a queue by hand: what is left is the wake-up of a thread.
    by_hand_s = lindley(arrived_s, compute_s)
    wake_up_s = np.median(queue_s[by_hand_s == 0])
    assert wake_up_s < 1.5e-3
    assert queue_s.mean() == pytest.approx(by_hand_s.mean() + wake_up_s, rel=0.3)
    # Against the closed form a busy machine can only add, by services that last longer than their padding; how much it
    # adds is not ours to assert.
    assert queue_s.mean() > 0.7 * expected_s


def test_two_cores_serve_two_at_once_in_order_of_arrival(graphs):
    async def run():
        service = Service(site(graphs, 2, 0.05))
        begun_s = time.monotonic()
        _, queue_s, _ = await drive(service, np.zeros(4))
        service.close()
        return queue_s, time.monotonic() - begun_s

    queue_s, took_s = uvloop.run(run())
    assert queue_s == pytest.approx([0, 0, 0.05, 0.05], abs=0.025)
    assert 0.1 <= took_s < 0.18


def test_padding_lasts_as_long_as_asked_and_no_shorter(graphs):
    async def run():
        service = Service(site(graphs, 1, 0.02))
        _, _, compute_s = await drive(service, np.arange(20) * 0.025)
        counts = service.endpoint("whole").counts
        service.close()
        return compute_s, counts

    compute_s, counts = uvloop.run(run())
    assert compute_s.min() >= 0.02
    assert np.median(compute_s) < 0.022
    assert counts.answered == 20
    assert counts.overruns <= 1  # this machine may be taken away for 20 ms, hardly twice
    assert counts.compute_s == pytest.approx(compute_s.sum())


def test_an_overrun_is_counted_where_all_functions_together_pass_their_padding():
    def busy(took_s):
        def run(inputs):
            time.sleep(took_s)
            return list(inputs)

        return run

    made_up = Padded([(busy(0.03), 0.01), (busy(0.0), 0.04), (busy(0.01), None)])
    begun_s = time.monotonic()
    made_up([])
    assert 0.06 <= time.monotonic() - begun_s < 0.12
    assert made_up.overruns == 0

    late = Padded([(busy(0.03), 0.01), (busy(0.0), 0.005), (busy(0.01), None)])
    late([])
    assert late.overruns == 1
    assert 0.015 <= late.worst_overrun_s < 0.05


def test_late_work_is_not_started_and_the_rest_is_in_order():
    async def run():
        workers = Workers(1)
        now_s = time.monotonic()
        done = []

        def work(name):
            time.sleep(0.05)
            done.append(name)
            return name

        first = asyncio.ensure_future(workers.run(lambda: work("first"), now_s, now_s + 10))
        late = asyncio.ensure_future(workers.run(lambda: work("late"), now_s, now_s + 0.01))
        gone = asyncio.ensure_future(workers.run(lambda: work("gone"), now_s, now_s + 10))
        last = asyncio.ensure_future(workers.run(lambda: work("last"), now_s, now_s + 10))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert (await first).result == "first"
        with pytest.raises(DeadlineExceeded, match="waited"):
            await late
        assert 0.045 < (await last).queue_s < 0.12  # one run before it, not three
        assert workers.idle
        workers.close()
        return done

    assert uvloop.run(run()) == ["first", "last"]


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
        waiting = asyncio.ensure_future(service.workers.run(lambda: time.sleep(0.03), 0, time.monotonic() + 9))
        await asyncio.sleep(0)
        assert service.inline(service.endpoint("whole"), X, arrived_s=time.monotonic()) is None
        reply = await service.infer("whole", X)
        np.testing.assert_array_equal(reply.outputs[0][1], at_once.outputs[0][1])
        assert reply.timings[0].ms > 15
        await waiting
        service.close()
        padded = Service(site(graphs, 1, 0.001))
        assert padded.inline(padded.endpoint("whole"), X, arrived_s=0) is None
        padded.close()

    uvloop.run(run())
