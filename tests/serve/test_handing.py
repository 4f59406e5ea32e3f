"""Costly requests between siblings: two workers of one service, here in one loop, whose engines the tests hold."""

import asyncio
import json
import socket
import threading
import time

import numpy as np
import pytest
import uvloop

from airserve.contract import Endpoint, SiteProcess
from airserve.model import Engine, Function, ModelError
from airserve.serve import handing
from airserve.serve.batching import DeadlineExceeded
from airserve.serve.handing import PREFIX, Hands, Siblings
from airserve.serve.metering import Table
from airserve.serve.service import Service

ROWS = np.random.default_rng(0).normal(size=(12, 1, 4)).astype("float32")


class Two:
    """Worker 0 and its sibling 1, which shares table and version; the engine of 0 waits until `free` is set."""

    def __init__(self, graphs, siblings=None):
        table, process = Table(workers=2), SiteProcess("s", "h", 0, 1, (whole(graphs),))
        self.siblings = siblings or Siblings(2)
        self.services = [Service(process, table, worker) for worker in (0, 1)]
        self.hands = [Hands(self.siblings, k, service) for k, service in enumerate(self.services)]
        self.free_of = [threading.Event(), threading.Event()]
        self.free = self.free_of[0]
        self.free_of[1].set()
        self.done_by: list[list[float]] = [[], []]
        for k, service in enumerate(self.services):
            served = service.endpoint("whole")
            served.mark, served.lasts_s = "whole 1", 0.01
            served.work = self._held(k, served.work)

    def _held(self, k, work):
        def held(inputs):
            assert self.free_of[k].wait(30)
            self.done_by[k].append(float(inputs[0][0, 0]))
            return work(inputs)

        return held

    def ask(self, row, deadline_s=30.0):
        service = self.services[0]
        asked = service.infer("whole", {"x": row}, deadline_s=time.monotonic() + deadline_s)
        return asyncio.ensure_future(asked)

    def counted(self):
        return self.services[0].endpoint("whole").counts

    async def close(self):
        for hands, service in zip(self.hands, self.services, strict=True):
            hands.close()
            service.close()
        await asyncio.sleep(0.02)  # both ends of a connection close in turns of the loop


def whole(graphs):
    return Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),))


@pytest.fixture(scope="module")
def expected(graphs):
    engine = Engine(graphs["whole"])
    return [engine.run([row])[0] for row in ROWS]


def right(replies, expected):
    for reply, y in zip(replies, expected, strict=True):
        np.testing.assert_array_equal(reply.outputs[0][1], y)


def test_what_waits_is_answered_by_an_idle_sibling_and_counted_once(graphs, expected):
    async def run():
        two = Two(graphs)
        for hands in two.hands:
            await hands.open()
        asked = [two.ask(row) for row in ROWS]
        while two.hands[0].handed < len(ROWS) - 1:  # its own engine has one and is held
            await asyncio.sleep(0.001)
        assert two.siblings.load(0)[0] == 1
        two.free.set()
        replies = await asyncio.gather(*asked)
        counts = two.counted()
        await two.close()
        return replies, two.done_by, counts

    replies, done_by, counts = uvloop.run(run())
    right(replies, expected)
    assert [len(rows) for rows in done_by] == [1, len(ROWS) - 1]
    assert sorted(done_by[0] + done_by[1]) == sorted(ROWS[:, 0, 0].tolist())
    assert done_by[1] == [row for row in ROWS[:, 0, 0].tolist() if row in done_by[1]]  # the oldest first
    assert (counts.answered, counts.failed) == (len(ROWS), 0)
    assert all(timing.ms >= 0 for reply in replies for timing in reply.timings)


def test_a_sibling_at_work_is_given_one_more_and_no_third(graphs, expected):
    async def run():
        two = Two(graphs)
        two.free_of[1].clear()
        for hands in two.hands:
            await hands.open()
        asked = [two.ask(row) for row in ROWS]
        async with asyncio.timeout(10):
            while two.siblings.load(1)[0] < handing.AHEAD:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        loads = [two.siblings.load(k)[0] for k in (0, 1)]
        two.free_of[1].set()
        two.free.set()
        replies = await asyncio.gather(*asked)
        await asyncio.sleep(0.05)
        lines = len(two.hands[0]._lines)
        await two.close()
        return replies, loads, lines, sum(map(len, two.done_by))

    replies, loads, lines, done = uvloop.run(run())
    right(replies, expected)
    assert loads == [len(ROWS) - handing.AHEAD, handing.AHEAD]
    assert (lines, done) == (1, len(ROWS))


@pytest.mark.parametrize("why", ["cheap", "another version", "busy", "leaving"])
def test_what_a_sibling_does_not_take_is_done_here(graphs, expected, why):
    async def run():
        two = Two(graphs)
        for hands in two.hands:
            await hands.open()
        served, sibling = (service.endpoint("whole") for service in two.services)
        match why:
            case "cheap":
                served.lasts_s = 0.001
            case "another version":
                sibling.mark = "whole 2"
            case "busy":
                two.services[1].workers.held = 1  # its own, that the table does not tell yet: refused when it is asked
            case "leaving":
                two.hands[1].leave()
        asked = [two.ask(row) for row in ROWS]
        while why in ("another version", "busy") and not two.hands[0].returned:
            await asyncio.sleep(0.001)
        two.free.set()
        replies = await asyncio.gather(*asked)
        counts = two.counted()
        two.services[1].workers.held = 0
        await two.close()
        return replies, two.done_by, two.hands[0], counts

    replies, done_by, hands, counts = uvloop.run(run())
    right(replies, expected)
    assert (hands.handed, bool(hands.returned)) == (0, why in ("another version", "busy"))
    assert not done_by[1]
    assert counts.answered == len(ROWS)


@pytest.mark.parametrize("how", ["dies", "dies with two", "hangs", "answers half", "answers another"])
def test_what_a_sibling_leaves_undone_is_done_here_once(graphs, expected, how, monkeypatch):
    monkeypatch.setattr(handing, "PATIENCE_S", 0.05)
    monkeypatch.setattr(handing, "TIMES", 1.0)

    async def run():
        two = Two(graphs)
        await two.hands[0].open()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(two.siblings.address(1))
            listening.listen()
            taken = threading.Thread(target=sibling, args=(listening, how), daemon=True)
            taken.start()
            two.siblings.come(1)
            asked = [two.ask(row) for row in ROWS]
            while not two.hands[0].returned:
                await asyncio.sleep(0.001)
            two.siblings.gone(1)
            two.free.set()
            replies = await asyncio.gather(*asked)
            await asyncio.to_thread(taken.join)
        counts = two.counted()
        await two.close()
        return replies, two.done_by[0], two.hands[0], counts

    replies, done, hands, counts = uvloop.run(run())
    right(replies, expected)
    assert hands.handed == 0
    if how == "dies with two":
        assert hands.returned == 2
    assert sorted(done) == sorted(ROWS[:, 0, 0].tolist())
    assert (counts.answered, counts.failed) == (len(ROWS), 0)


def sibling(listening, how):
    """Hears one request or two, and does with it as a worker may that is about to die, or hangs."""
    one, _ = listening.accept()
    for _ in range(2 if how == "dies with two" else 1):
        number, _, size = PREFIX.unpack(one.recv(PREFIX.size, socket.MSG_WAITALL))
        one.recv(size, socket.MSG_WAITALL)
    text = json.dumps([0.0, 0.0, [[1, 3]]]).encode().ljust(32)
    whole = PREFIX.pack(number + 100 * (how == "answers another"), 32, 48) + text + b"\0" * 16
    if how.startswith("answers"):
        one.sendall(whole[:60] if how == "answers half" else whole)
    if not how.startswith("dies"):
        one.recv(1)  # until it is given up
    one.close()


def test_late_and_cancelled_requests(graphs):
    """What is late when a sibling takes it up is not computed there either; an answer for nobody is dropped."""

    async def run():
        two = Two(graphs)
        for hands in two.hands:
            await hands.open()
        first = two.ask(ROWS[0])
        await asyncio.sleep(0)
        second, late = two.ask(ROWS[1]), two.ask(ROWS[2], deadline_s=0.0)
        second.cancel()
        while two.services[0].workers.held > 2:
            await asyncio.sleep(0.001)
        two.free.set()
        results = await asyncio.gather(first, second, late, return_exceptions=True)
        await two.close()
        return results, two.done_by

    (first, second, late), done_by = uvloop.run(run())
    assert first.outputs
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(late, DeadlineExceeded)
    assert float(ROWS[2, 0, 0]) not in done_by[0] + done_by[1]


def test_what_the_engine_refuses_is_said_by_the_one_who_was_asked(graphs):
    async def run():
        two = Two(graphs)
        for hands in two.hands:
            await hands.open()

        def refuses(inputs):
            raise ModelError("no.")

        for service in two.services:
            service.endpoint("whole").work = refuses
        results = await asyncio.gather(*(two.ask(row) for row in ROWS), return_exceptions=True)
        counts = two.counted()
        await two.close()
        return results, counts

    results, counts = uvloop.run(run())
    assert {(type(one), str(one)) for one in results} == {(ModelError, "no.")}
    assert (counts.answered, counts.failed) == (0, len(ROWS))
