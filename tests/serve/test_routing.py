"""A head's connection: which bytes a request took, what happens when the tail dies, is late, or talks nonsense."""

import asyncio
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
import uvloop

from airserve import wire
from airserve.contract import Endpoint, Route, SiteProcess
from airserve.model import Engine, Function, Tensor
from airserve.serve.balancing import Balancer
from airserve.serve.connecting import AnswerReader, UpstreamFailed, UpstreamLate
from airserve.serve.routing import ALONE, Router
from airserve.serve.service import Service
from airserve.timing import parse_air, parse_timing

HIDDEN = Tensor("hidden", "float32", (-1, 64))


class Recorder:
    """A relay that keeps every byte of each connection, by the local port of the client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: dict[int, tuple[bytearray, bytearray]] = {}
        self.sources: list[str] = []
        self.tasks: list[asyncio.Task] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await asyncio.gather(*self.tasks)

    async def _relay(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        host, port = writer.get_extra_info("peername")
        self.sources.append(host)
        up, down = self.streams[port] = (bytearray(), bytearray())
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def pump(source, target, kept):
            while data := await source.read(1 << 16):
                kept += data
                target.write(data)
            target.close()
            await target.wait_closed()

        await asyncio.gather(pump(reader, their_writer, up), pump(their_reader, writer, down))


def chain(graphs, route):
    head = Function("head", "head", str(graphs["head"]))
    return SiteProcess("camera", "127.0.0.1", 0, 1, (Endpoint("cut", (head,), route),), 0)


@pytest.mark.parametrize("compress", [False, True])
def test_the_air_entry_names_the_bytes_that_a_relay_sees(graphs, mast, compress):
    engine, whole = Engine(graphs["head"]), Engine(graphs["whole"])
    inputs = [np.full((1 + k, 4), k, "float32") for k in range(5)]

    async def run():
        async with Recorder(mast.port) as relay:
            route = Route("127.0.0.1", relay.address, "tail", "127.1.0.9", compress)
            service = Service(chain(graphs, route))
            replies = await asyncio.gather(*(service.infer("cut", {"x": x}) for x in inputs))
            service.close()
            return relay, replies

    relay, replies = uvloop.run(run())
    assert relay.sources == ["127.1.0.9"]  # one connection, from the device's own address
    ends = set()
    for x, reply in zip(inputs, replies, strict=True):
        np.testing.assert_allclose(reply.outputs[0][1], whole.run([x])[0], atol=2e-6)
        queue, compute, air = reply.timings
        assert (queue.name, compute.name, air.name, queue.desc) == ("queue", "compute", "air", "camera")
        assert [(t.name, t.desc) for t in parse_timing(reply.onward)] == [("queue", "mast"), ("compute", "mast")]
        assert air.ms >= sum(t.ms for t in parse_timing(reply.onward))
        at = parse_air(air.desc)
        up, down = relay.streams[at.port]
        request = wire.infer_request(
            "tail", [(HIDDEN, engine.run([x])[0])], host=f"127.0.0.1:{relay.address}", compress=compress
        )
        assert up[at.up[0] : at.up[1]] == request
        (answer,) = AnswerReader().feed(bytes(down[at.down[0] : at.down[1]]))
        outputs = wire.parse_response(answer.body, int(answer.headers["inference-header-content-length"])).outputs
        np.testing.assert_array_equal(outputs[0][1], reply.outputs[0][1])
        ends |= {at.up, at.down}
    assert sum(b - a for a, b in ends) == len(up) + len(down)  # every byte belongs to one request


def test_a_tail_that_was_started_again_is_asked_again(graphs, start):
    tail = Endpoint("tail", (Function("tail", "tail", str(graphs["tail"])),))
    running = start(tail)
    x = {"x": np.ones((1, 4), "float32")}

    async def run():
        service = Service(chain(graphs, Route("127.0.0.1", running.port, "tail")))
        before = await service.infer("cut", x)
        running.process.kill()
        running.process.wait()
        with pytest.raises(UpstreamFailed, match=r"cannot be asked .*see that its site runs"):
            await service.infer("cut", x)
        await asyncio.to_thread(start, tail, port=running.port)
        after = await service.infer("cut", x)
        np.testing.assert_array_equal(after.outputs[0][1], before.outputs[0][1])
        assert service.endpoint("cut").counts[:2] == (2, 1)
        service.close()

    uvloop.run(run())


@asynccontextmanager
async def fake(answer):
    """A server that does with (reader, writer) what it is told, and then closes; gives the port where it listens."""
    tasks = []

    async def one(reader, writer):
        tasks.append(asyncio.current_task())
        await answer(reader, writer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*tasks)


def test_a_connection_that_dies_in_the_middle_is_made_again_once():
    calls = 0

    async def second_time_lucky(reader, writer):
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        if calls == 2:
            writer.write(wire.http_response(200, b"{}"))

    async def run():
        request = wire.metadata_request("m", host="h")
        async with fake(second_time_lucky) as port:
            alone = Balancer([Route("127.0.0.1", port, "m")], ALONE)
            got = await alone.send(lambda route: request, time.monotonic() + 5)
            assert (got.answer.body, calls, got.air.up[0]) == (b"{}", 2, 0)
            with pytest.raises(UpstreamFailed, match=r"m cannot be asked \(the connection was closed\)"):
                await alone.send(lambda route: request, time.monotonic() + 5)
            assert 3 <= calls <= 4  # three where it had not yet noticed the end of the second connection
            alone.close()

    uvloop.run(run())


async def silent(reader, writer):
    await reader.read()


async def odd(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        (silent, UpstreamLate, "did not answer before the deadline"),
        (odd, UpstreamFailed, "starts with 'SSH-2.0-OpenSSH'"),
    ],
)
def test_a_tail_that_is_late_and_one_that_talks_nonsense(behaviour, error, says):
    async def run():
        async with fake(behaviour) as port:
            alone = Balancer([Route("127.0.0.1", port, "m")], ALONE)
            begun_s = time.monotonic()
            with pytest.raises(error, match=says):
                await alone.send(lambda route: wire.metadata_request("m", host="h"), begun_s + 0.1)
            assert time.monotonic() - begun_s < 1
            alone.close()

    uvloop.run(run())


@pytest.mark.parametrize("body", [b"{", b'{"outputs": 3}', b'{"outputs": [{"name": "y"}]}', b"[]"])
def test_an_answer_that_cannot_be_read_is_the_next_sites_fault(body):
    async def answer(reader, writer):
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(wire.http_response(200, body))

    async def run():
        async with fake(answer) as port:
            router = Router([Route("127.0.0.1", port, "m")])
            with pytest.raises(UpstreamFailed, match="cannot be read"):
                await router.ask(wire.metadata_request("m", host="h"), time.monotonic() + 5)
            with pytest.raises(UpstreamFailed, match="cannot be read"):
                await router.outputs(time.monotonic() + 5)
            router.close()

    uvloop.run(run())
