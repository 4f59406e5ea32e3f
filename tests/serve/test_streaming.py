"""Answers that are sent while they are made: in their turn, whole, as fast as they are read, and given up in time."""

import asyncio
import http.client
import io
from contextlib import suppress

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from airserve import wire
from airserve.serve.protocols import _listening
from airserve.serve.protocols._limits import Limits
from airserve.serve.protocols._streaming import Stream, chunk, event


def serving(talk, answer, limits=None):
    """Runs `talk(reader, writer)` against a connection that `answer` answers."""

    async def run():
        failed = lambda error: wire.error_response(500, str(error))  # noqa: E731
        listener = await _listening.listen(answer, failed, "127.0.0.1", 0, limits=limits)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        found = await talk(reader, writer, listener)
        writer.close()
        await listener.drain(2)
        return found

    return uvloop.run(run())


def asked(path=b"/", version=b"1.1", method=b"POST"):
    return b"%b %b HTTP/%b\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % (method, path, version)


class Source:
    """Streams that count: b"0", b"1", ... up to the number in the path, and what became of them."""

    def __init__(self, pause_s=0.0, size=1, costly=False):
        self.pause_s, self.size, self.costly = pause_s, size, costly
        self.made = self.ended = 0

    async def parts(self, count):
        for k in range(count):
            await asyncio.sleep(self.pause_s)
            self.made += 1
            yield b"%d" % k * self.size
            if k == 66:
                raise RuntimeError("it broke")

    def __call__(self, head, body, arrived_s):
        head.costly = self.costly
        if head.path == "/now":
            return wire.http_response(200, b"now")

        async def later():
            if head.path == "/wrong":
                raise ValueError("nothing was sent yet")
            stream = Stream(self.parts(int(head.path[1:])), extra="X-Of: mine\r\n")
            stream.ended.append(self.end)
            return stream

        return later()

    def end(self):
        self.ended += 1


class Kept(io.BytesIO):
    def close(self):
        pass


class Socket:
    """A socket that holds what was received; a response may not close its file, for the next one follows."""

    def __init__(self, data):
        self.file = Kept(data)

    def makefile(self, _mode):
        return self.file


def read(reply, count):
    """Status, body and encoding of responses, read by the standard library."""
    socket, got = Socket(reply), []
    for _ in range(count):
        one = http.client.HTTPResponse(socket)
        one.begin()
        got.append((one.status, one.read(), one.getheader("Transfer-Encoding")))
    assert not socket.file.read()
    return got


def test_streams_leave_in_the_order_of_their_requests():
    source = Source()

    async def talk(reader, writer, _):
        writer.write(asked(b"/5") + asked(b"/now") + asked(b"/3") + asked(b"/3") + asked(b"/wrong") + asked(b"/0"))
        writer.write_eof()
        return await reader.read()

    bodies = read(serving(talk, source), 6)
    assert [body for _, body, _ in bodies] == [
        b"01234", b"now", b"012", b"012", b'{"error":"nothing was sent yet"}', b""
    ]  # fmt: skip
    assert [how for _, _, how in bodies] == ["chunked", None, "chunked", "chunked", None, "chunked"]
    assert source.ended == 4


def test_http_1_0_gets_its_stream_without_chunks_and_the_connection_ends():
    async def talk(reader, writer, _):
        writer.write(asked(b"/4", b"1.0"))
        return await reader.read()

    head, _, body = serving(talk, Source()).partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nX-Of: mine" in head
    assert b"chunked" not in head
    assert body == b"0123"


def test_a_stream_that_breaks_has_no_end():
    async def talk(reader, writer, _):
        writer.write(asked(b"/90"))
        got = b""
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                got += data
        return got

    source = Source()
    assert not serving(talk, source).endswith(b"0\r\n\r\n")
    assert source.made == 67
    assert source.ended == 1


@pytest.mark.parametrize("leaves", ["close", "reset", "half"])
def test_a_client_that_goes_away_ends_what_is_made_for_it(leaves):
    source = Source(pause_s=0.01, costly=leaves == "half")

    async def talk(reader, writer, _):
        writer.write(asked(b"/50"))
        await reader.readuntil(b"\r\n\r\n")
        if leaves == "half":
            writer.write_eof()
        elif leaves == "reset":
            writer.transport.abort()
        else:
            writer.close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if source.ended:
                return source.made

    assert serving(talk, source) < 40
    assert source.ended == 1


def test_a_stream_is_made_no_faster_than_it_is_read():
    source = Source(size=100_000)

    async def talk(reader, writer, _):
        writer.write(asked(b"/60"))
        await asyncio.sleep(0.3)
        before = source.made
        writer.write_eof()
        return before, len(await reader.read())

    before, size = serving(talk, source)
    assert before < 60
    assert size > 60 * 100_000
    assert source.ended == 1


def test_a_client_that_reads_nothing_is_given_up():
    source = Source(size=100_000)

    async def talk(reader, writer, _):
        writer.write(asked(b"/60"))
        for _ in range(300):
            await asyncio.sleep(0.01)
            if source.ended:
                return True

    assert serving(talk, source, Limits(write_s=0.2))


def test_the_end_of_a_service_waits_for_streams():
    source = Source(pause_s=0.02)

    async def talk(reader, writer, listener):
        writer.write(asked(b"/9"))
        await reader.readuntil(b"\r\n\r\n")
        await listener.drain(5)
        return await reader.read()

    assert serving(talk, source).endswith(b"1\r\n8\r\n0\r\n\r\n")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
def test_chunks_are_read_by_another_implementation(parts):
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    assert read(reply, 1)[0][1] == b"".join(parts)


def test_an_event_is_one_line():
    assert event(b'{"a":1}') == b'data: {"a":1}\n\n'
