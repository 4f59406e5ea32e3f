"""A gateway's texts: the body names the model, and what a site says in parts is passed on part by part."""

import asyncio
import contextlib
import gzip
import json

import uvloop

from airserve import wire
from airserve.contract import Route
from airserve.serve import streams
from airserve.serve.protocols import _listening
from airserve.serve.protocols._streaming import chunk, event
from airserve.serve.protocols.oip import error_response
from airserve.serve.relaying import Gateway
from airserve.serve.routes import Routes

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Site: s\r\nTransfer-Encoding: chunked\r\n\r\n"
CHAT = "POST /v1/chat/completions"


class Site:
    """Keeps what it hears, and answers as `say(body, writer)` does."""

    def __init__(self, say):
        self.say, self.heard, self.left = say, [], asyncio.Event()

    async def open(self):
        self.server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _hear(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int((head.lower().partition(b"\r\ncontent-length: ")[2].split(b"\r\n")[0]) or 0)
            body = await reader.readexactly(length)
            if b"/v2/health" in head:
                writer.write(wire.http_response(200, b"{}"))
            else:
                self.heard.append((head, body))
                await self.say(body, writer)
                assert await reader.read() == b""
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.left.set()
            writer.close()


async def whole(body, writer):
    writer.write(wire.http_response(200, b'{"of": "%b"}' % json.loads(body)["model"].encode(), extra="X-Site: s\r\n"))


async def full(body, writer):
    writer.write(wire.error_response(503, "full."))


async def dead(body, writer):
    writer.transport.abort()


def through(talk, *says, made=lambda places: {"*": places}):
    """Runs `talk(ask, sites, gateway)` with a gateway before such sites."""

    async def run():
        sites = [await Site(say).open() for say in says]
        gateway = Gateway(Routes(made(tuple(Route("127.0.0.1", site.port, "") for site in sites))))
        listener = await _listening.listen(gateway.answer, error_response, "127.0.0.1", 0)

        async def begin(line, body=b"", extra=""):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(f"{line} HTTP/1.1\r\nHost: h\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            return int(head[9:12]), head, reader, writer

        async def ask(line, body=b"", extra=""):
            status, head, reader, writer = await begin(line, body, extra)
            got = await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))
            writer.close()
            return status, json.loads(got), head

        ask.begin = begin
        try:
            await talk(ask, sites, gateway)
        finally:
            await listener.drain(1)
            gateway.close()
            for site in sites:
                site.server.close()
            await asyncio.sleep(0)

    uvloop.run(run())


def body(model="gpt", **more):
    return json.dumps({"model": model, **more}).encode()


def test_a_whole_answer_comes_from_the_site_of_its_model_under_the_name_it_has_there():
    async def talk(ask, sites, gateway):
        status, got, head = await ask(
            CHAT, body(seed=7), "Authorization: Bearer as_1\r\nX-Request-Timeout-Ms: 9876\r\n"
        )
        assert (status, got) == (200, {"of": "gpt"})
        assert "x-site: s\r\n" in head
        ((sent, given),) = sites[0].heard
        assert sent.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"Authorization" in sent or b"authorization: Bearer as_1\r\n" in sent
        assert b"X-Request-Timeout-Ms: 9800\r\n" in sent or b"X-Request-Timeout-Ms: 9700\r\n" in sent
        assert given == body(seed=7)
        packed = gzip.compress(body("small", n=1))
        assert (await ask("POST /v1/embeddings", packed, "Content-Encoding: gzip\r\n"))[1] == {"of": "gpt-int8"}
        ((sent, given),) = sites[1].heard
        assert json.loads(given) == {"model": "gpt-int8", "n": 1}
        assert b"ncoding" not in sent
        for line, given, code, says in (
            (CHAT, body("other"), 404, "no route to a model 'other'; there are routes to gpt, small"),
            (CHAT, b"{", 400, "the JSON is malformed"),
            (CHAT, b"[]", 400, "names no model"),
            ("GET /v1/chat/completions", b"", 405, "takes POST"),
            ("POST /v1/images", b"{}", 404, "not relayed"),
        ):
            status, got, _ = await ask(line, given)
            assert (status, says in got["error"]["message"]) == (code, True), got
        assert [one["id"] for one in (await ask("GET /v1/models"))[1]["data"]] == ["gpt", "small"]
        told = {(one["protocol"], one["model"]): one["requests"] for one in gateway.status()["models"]}
        assert told == {("v2", "gpt"): 0, ("v2", "small"): 0, ("v1", "gpt"): 1, ("v1", "small"): 1}

    def made(places):
        return {"gpt": places[:1], "small": (Route("127.0.0.1", places[1].port, "gpt-int8"),)}

    through(talk, whole, whole, made=made)


def test_parts_are_passed_on_as_they_come_and_an_answer_cut_short_is_seen_to_be():
    go = asyncio.Event()

    async def parts(body, writer):
        writer.write(CHUNKED + chunk(event(b"1")))
        await go.wait()
        writer.write(chunk(event(b"2")) + chunk(event(b"[DONE]")) + (b"0\r\n\r\n" if b"end" in body else b""))
        await writer.drain()
        if b"end" not in body:
            writer.close()

    async def talk(ask, sites, gateway):
        for how in ("end", "cut"):
            go.clear()
            status, head, reader, writer = await ask.begin(CHAT, body(how))
            assert (status, "content-type: text/event-stream\r\n" in head, "x-site: s\r\n" in head) == (200, True, True)
            assert head.count("transfer-encoding: chunked") == head.count("cache-control: no-store") == 1
            assert await reader.readexactly(len(chunk(event(b"1")))) == chunk(event(b"1"))  # before there is another
            assert gateway.status()["models"][-1]["sites"][0]["under_way"] == 0
            go.set()
            rest = chunk(event(b"2")) + chunk(event(b"[DONE]")) + b"0\r\n\r\n"
            if how == "end":
                assert await reader.readexactly(len(rest)) == rest
            else:
                with contextlib.suppress(ConnectionResetError):
                    assert not (await reader.read()).endswith(b"0\r\n\r\n")
            writer.close()

    through(talk, parts)


def test_a_client_that_goes_ends_what_the_site_makes():
    async def forever(body, writer):
        writer.write(CHUNKED)
        while True:
            writer.write(chunk(event(b"more")))
            await writer.drain()
            await asyncio.sleep(0.005)

    async def talk(ask, sites, gateway):
        for read in (True, False):
            sites[0].left.clear()
            _, _, reader, writer = await ask.begin(CHAT, body())
            if read:
                await reader.readexactly(40)
            writer.close()
            async with asyncio.timeout(20):
                await sites[0].left.wait()
                while gateway.room.taken:
                    await asyncio.sleep(0.005)

    through(talk, forever)


def test_a_site_that_hangs_within_its_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(streams, "SILENT_S", 0.05)

    async def hang(body, writer):
        writer.write(CHUNKED + chunk(event(b"1")) + body[-3:-2])  # and the beginning of a chunk, or none

    async def talk(ask, sites, gateway):
        for how in ("1", " "):
            sites[0].left.clear()
            _, _, reader, writer = await ask.begin(CHAT, body(how), "X-Request-Timeout-Ms: 50\r\n")
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() in (b"", chunk(event(b"1")))  # without the end of an answer
                await sites[0].left.wait()
                while gateway.room.taken:
                    await asyncio.sleep(0.005)
            writer.close()

    through(talk, hang)


def test_a_site_that_is_full_or_dead_is_passed_by():
    async def talk(ask, sites, gateway):
        for _ in range(12):
            assert (await ask(CHAT, body()))[:2] == (200, {"of": "gpt"})
        assert len(sites[2].heard) == 12
        sites[2].say = full
        status, got, _ = await ask(CHAT, body())
        assert status in (502, 503)
        for site in sites:
            site.server.close()
            site.say = dead
        status, got, _ = await ask(CHAT, body(), "X-Request-Timeout-Ms: 300\r\n")
        assert (status in (502, 503, 504), got["error"]["type"]) == (True, "server_error")

    through(talk, full, dead, whole)
