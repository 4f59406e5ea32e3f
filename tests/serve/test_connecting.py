"""Connections: answers out of a torn stream, and which connection a request takes."""

import asyncio
import json
import time

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import wire
from airserve.contract import Route
from airserve.serve.connecting import AnswerReader, Upstream


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=5), st.data())
def test_answers_are_read_however_the_stream_is_torn(bodies, data):
    stream = b"".join(wire.http_response(200, body) for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = AnswerReader(), []
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[a:b])
    assert [one.body for one in got] == bodies
    assert sum(one.size_bytes for one in got) == len(stream)


def test_an_interim_answer_is_passed_over():
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + wire.http_response(200, json.dumps({}).encode())
    assert [one.status for one in AnswerReader().feed(data)] == [200]


@pytest.mark.parametrize(("limit", "opened"), [(1, 1), (3, 3), (9, 6)])
def test_a_request_takes_an_idle_connection_or_a_new_one_while_there_may_be_more(limit, opened):
    """Six at once, twice: the second six find the connections of the first, and none gets another's answer."""
    arrived, go = [], asyncio.Event()

    async def serve(reader, writer):
        arrived.append(writer)
        while line := (await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""):
            await go.wait()
            writer.write(wire.http_response(200, line.split(b" ")[1]))
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream(Route("127.0.0.1", port, "m"), limit)

        async def ask(k):
            answer, air = await upstream.exchange(b"GET /%d HTTP/1.1\r\n\r\n" % k, time.monotonic() + 5)
            assert answer.body == b"/%d" % k
            return air

        for _ in range(2):
            go.clear()
            asked = [asyncio.ensure_future(ask(k)) for k in range(6)]
            while upstream.waiting < 6 or len(arrived) < opened:
                await asyncio.sleep(0.001)
            go.set()
            airs = await asyncio.gather(*asked)
            assert len({air.port for air in airs}) == opened
        assert len(arrived) == opened
        upstream.close()
        for writer in arrived:
            writer.close()
        server.close()

    uvloop.run(run())


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "before another"])
def test_a_connection_on_which_nobody_waits_for_the_first_answer_is_given_up(behind):
    """As after a hedge that has won: whoever asks next is answered on another."""
    opened = []

    async def serve(reader, writer):
        opened.append(writer)
        while line := (await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""):
            if len(opened) > 1:
                writer.write(wire.http_response(200, line.split(b" ")[1]))
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = Upstream(Route("127.0.0.1", server.sockets[0].getsockname()[1], "m"))

        def ask(k, within_s):
            request = b"GET /%d HTTP/1.1\r\n\r\n" % k
            return asyncio.ensure_future(upstream.exchange(request, time.monotonic() + within_s))

        first = ask(0, 60)
        while not upstream.waiting or not opened:
            await asyncio.sleep(0.001)
        if behind:
            late = ask(1, 0.05)
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        if behind:
            assert upstream.waiting == 2
            with pytest.raises(TimeoutError):
                await late
        assert upstream.waiting == 0
        answer, _ = await ask(2, 10)
        upstream.close()
        for writer in opened:
            writer.close()
        server.close()
        return answer.body

    assert uvloop.run(run()) == b"/2"
