"""What is not needed is let go at once: a version that was replaced, a connection that ended, a request answered."""

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest
import uvloop

from airserve import catalog, wire
from airserve.contract import Endpoint, Route, SiteProcess
from airserve.model import Function, Tensor
from airserve.serve.batching import Job
from airserve.serve.connecting import Upstream
from airserve.serve.metering import Table
from airserve.serve.protocols._pending import Pending, Slot
from airserve.serve.served import Served
from airserve.serve.service import Service


def test_replaced_versions_are_let_go_though_connections_stay(graphs):
    whole = Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),))
    x = np.ones((2, 4), "float32")
    request = wire.infer_request("whole", [(Tensor("x", "float32", x.shape), x)], host="h")

    async def run():
        service = Service(SiteProcess("mast", "127.0.0.1", 0, 1, ()), Table(1))
        listener = await catalog.protocols["oip"].listen(service, "127.0.0.1", 0)
        clients = [Upstream(Route("127.0.0.1", listener.port, "whole")) for _ in range(3)]
        gone = []
        for slot in range(5):
            served = await asyncio.to_thread(Served, whole, service.table, 0, slot)
            for old in service.offer([served]):
                gone.append(weakref.ref(old))
                old.close()
            for _ in range(4):  # the header is known by then
                answers = await asyncio.gather(*(one.exchange(request, time.monotonic() + 10) for one in clients))
                assert {answer.status for answer, _ in answers} == {200}
            old = served = None
        gc.collect()
        assert [one() for one in gone] == [None] * 4
        for one in clients:
            one.close()
        await listener.drain(1.0)
        service.close()

    uvloop.run(run())


def without_collection(work):
    gc.collect()
    gc.disable()
    try:
        uvloop.run(work)
    finally:
        gc.enable()


@pytest.mark.parametrize("times", [1, 4], ids=["parsed", "repeated"])
@pytest.mark.parametrize("rows", [1, 20_000])
def test_a_connection_that_ended_is_let_go_with_what_it_held_and_needs_no_collection(graphs, times, rows):
    """Python collects what refers to itself once in ten thousands of objects: each held the last large request."""
    whole = Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),))
    x = np.ones((rows, 4), "float32")
    request = wire.infer_request("whole", [(Tensor("x", "float32", x.shape), x)], host="h")

    async def run():
        service = Service(SiteProcess("mast", "127.0.0.1", 0, 1, ()), Table(1))
        service.offer([await asyncio.to_thread(Served, whole, service.table, 0, 0)])
        listener = await catalog.protocols["oip"].listen(service, "127.0.0.1", 0)
        client = Upstream(Route("127.0.0.1", listener.port, "whole"))
        try:
            for _ in range(times):
                assert (await client.exchange(request, time.monotonic() + 10))[0].status == 200
            (connection,) = map(weakref.ref, listener._connections)
            body = connection()._body
            client.close()
            until_s = time.monotonic() + 10
            while connection() is not None and time.monotonic() < until_s:
                await asyncio.sleep(0.005)
            assert (connection(), body) == (None, [])
        finally:
            await listener.drain(1.0)
            service.close()

    without_collection(run())


def test_nothing_of_a_request_that_was_answered_waits_for_a_collection(graphs):
    """Of a known form, to a model that is not quick: what waits for it and what it waits for know each other."""
    slow = Endpoint("slow", (Function("whole", "model", str(graphs["whole"]), padded_s=0.001),))
    x = np.ones((6000, 4), "float32")
    request = wire.infer_request("slow", [(Tensor("x", "float32", x.shape), x)], host="h")
    kinds = Job, Pending, Slot

    async def run():
        service = Service(SiteProcess("mast", "127.0.0.1", 0, 1, (slow,)))
        listener = await catalog.protocols["oip"].listen(service, "127.0.0.1", 0)
        client = Upstream(Route("127.0.0.1", listener.port, "slow"))
        try:
            for _ in range(20):
                assert (await client.exchange(request, time.monotonic() + 10))[0].status == 200
            async with asyncio.timeout(10):  # the thread may still be on its way to the next
                while any(type(one) in kinds for one in gc.get_objects()):
                    await asyncio.sleep(0.005)
        finally:
            client.close()
            await listener.drain(1.0)
            service.close()

    without_collection(run())
