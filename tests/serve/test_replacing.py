"""A version that was replaced is let go, with the memory of its engine, as soon as nobody asks it any more."""

import asyncio
import gc
import time
import weakref

import numpy as np
import uvloop

from airserve import catalog, wire
from airserve.contract import Endpoint, Route, SiteProcess
from airserve.model import Function, Tensor
from airserve.serve.connecting import Upstream
from airserve.serve.metering import Table
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
