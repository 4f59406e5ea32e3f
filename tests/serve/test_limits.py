"""What a client may ask of a connection and a queue: slow and idle ones, deadlines, and a queue that is full."""

import asyncio
import itertools
import json
import socket
import struct
import time

import numpy as np
import pytest
import uvloop

from airserve import wire
from airserve.contract import Endpoint, SiteProcess
from airserve.model import Engine, Function, Tensor
from airserve.serve import rereading
from airserve.serve.configuration import Configuration
from airserve.serve.connecting import AnswerReader
from airserve.serve.guarding import Guard
from airserve.serve.protocols import _listening, oip
from airserve.serve.protocols._held import Held
from airserve.serve.protocols._limits import Bodies, Limits, Share
from airserve.serve.protocols._observing import observed
from airserve.serve.protocols._pending import Pending
from airserve.serve.service import Service
from airserve.serve.tenants import new_key

X = Tensor("x", "float32", (-1, 4))
QUICK = Limits(header_s=0.2, body_bytes_per_s=1e9, idle_s=0.6, write_s=0.2, linger_s=0.1)


def asked(model="slow", extra=""):
    return wire.infer_request(model, [(X, np.ones((1, 4), "float32"))], host="h", extra=extra)


def serving(graphs, talk, limits=None, queue=4096, guard=None):
    """Runs `talk(reader, writer)` against a service with a model of 50 ms."""

    async def run():
        slow = Endpoint("slow", (Function("whole", "model", str(graphs["whole"]), padded_s=0.05),))
        quick = Endpoint("quick", (Function("whole", "model", str(graphs["whole"])),))
        service = Service(SiteProcess("mast", "127.0.0.1", 0, 1, (slow, quick)))
        service.workers.limit = queue
        listener = await oip.listen(service, "127.0.0.1", 0, limits=limits, guard=guard)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        found = await talk(reader, writer)
        writer.close()
        await listener.drain(2)
        counted = service.endpoint("slow").table.counted(0)
        service.close()
        return found, counted

    return uvloop.run(run())


async def answers(reader, count):
    read, got = AnswerReader(), []
    while len(got) < count and (data := await reader.read(1 << 16)):
        got += read.feed(data)
    return got


def vanish(writer):
    """Goes away for good: a mere end might be of the client's half alone."""
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"GET /v2 HT", asked()[:-7], asked("quick") * 3 + asked("quick")[:-7]])
def test_a_request_that_does_not_arrive_is_given_up(graphs, sent):
    async def talk(reader, writer):
        writer.write(sent)
        begun_s = time.monotonic()
        got = await answers(reader, sent.count(b"Content-Length: ") + 9)  # until the end of the stream
        return got[-1], time.monotonic() - begun_s

    (last, took_s), _ = serving(graphs, talk, QUICK)
    assert last.status == 408
    assert 0.2 < took_s < 3


def test_a_body_that_comes_byte_by_byte_is_given_up_though_its_header_is_known(graphs):
    """Each byte is progress, and too little of it; at the least rate that is wanted it is waited for."""

    async def talk(reader, writer):
        writer.write(asked("quick") * 2)
        await answers(reader, 2)
        request, begun_s = asked("quick"), time.monotonic()
        ended = asyncio.ensure_future(answers(reader, 2))
        writer.write(request[:-16])
        for k in range(len(request) - 16, len(request) - 1):
            writer.write(request[k : k + 1])
            if (await asyncio.wait([ended], timeout=0.1))[0]:
                break
        return (await ended)[-1], time.monotonic() - begun_s

    (last, took_s), _ = serving(graphs, talk, QUICK)
    assert last.status == 408
    assert 0.2 < took_s < 1.4  # the bytes would last 1.5 s

    async def slowly(reader, writer):
        request = asked("quick")
        writer.write(request * 2)
        body = request.index(b"\r\n\r\n") + 4
        writer.write(request[:body])
        for k in range(body, len(request), 10):
            writer.write(request[k : k + 10])
            await asyncio.sleep(0.1)
        return await answers(reader, 3)

    found, _ = serving(graphs, slowly, Limits(header_s=0.2, body_bytes_per_s=1.0, linger_s=0.1))
    assert [answer.status for answer in found] == [200] * 3


def upload(size, lines=""):
    """An infer request whose body, of spaces, is no JSON."""
    return (
        f"POST /v2/models/quick/infer HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {size}\r\n\r\n".encode(),
        b" " * size,
    )


def test_an_upload_that_stalls_is_given_up_whatever_has_come(graphs):
    """A megabyte would be worth four minutes of patience, were it the average that counted."""

    async def talk(reader, writer):
        head, body = upload(2 << 20)
        writer.write(head + body[1 << 20 :])
        return await asyncio.wait_for(answers(reader, 9), 20)  # until the end of the stream

    (last,), _ = serving(graphs, talk, Limits(header_s=0.2, linger_s=0.1))
    assert last.status == 408


def test_bodies_are_bounded_over_all_connections_and_room_comes_back(graphs):
    async def talk(reader, writer):
        (head, body), third = upload(300_000), 100_000
        more = [await asyncio.open_connection(*writer.get_extra_info("peername")) for _ in range(3)]

        async def whole(k):
            more[k][1].write(head + body)
            return (await answers(more[k][0], 1))[0]

        async def held(*those):
            """Two thirds of a body each, read by the server: a later request is answered."""
            for one in those:
                one.write(head + body[third:])
            await asyncio.sleep(0.1)

        found = [await whole(0)]  # 400: spaces are no request
        await held(writer, more[1][1])
        found += [await whole(0)]  # 503: no room for another
        writer.write(body[:third])
        found += await answers(reader, 1)
        more[1][1].transport.abort()  # what was held for it is free
        await asyncio.sleep(0.1)
        found += [await whole(0), await whole(2)]
        await held(writer)
        found += [await whole(0)]
        for _, one in more:
            one.close()
        return found

    found, _ = serving(graphs, talk, Limits(bodies_bytes=600_000))
    assert [answer.status for answer in found] == [400, 503, 400, 400, 400, 400]
    assert found[1].headers["retry-after"] == "1"


@pytest.mark.parametrize("path", [b"/v2/models/quick/infer", b"/v1/completions", b"/v2/health/live"])
def test_nothing_is_kept_of_a_body_whose_sender_is_not_known(graphs, tmp_path, path):
    """Not even where there would be no room; and the connection goes on, for a gateway's serves others as well."""
    key = new_key(tmp_path / "keys.json", "a")
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))

    async def talk(reader, writer):
        for lines in ("", "X-API-Key: as_wrong\r\n", f"X-API-Key: {key}\r\n"):
            head, body = upload(300_000, lines)
            writer.write(head.replace(b"/v2/models/quick/infer", path) + body)
        writer.write(asked("quick", f"X-API-Key: {key}\r\n"))
        return await answers(reader, 4)

    found, _ = serving(graphs, talk, Limits(bodies_bytes=1000), guard=guard)
    others = [405] * 3 if path == b"/v2/health/live" else [401, 401, 503]
    assert [answer.status for answer in found] == [*others, 200]


def test_a_body_that_nobody_wants_is_not_asked_for(graphs, tmp_path):
    """`Expect: 100-continue` is answered with the error itself, which is the last answer (RFC 9110 10.1.1)."""
    new_key(tmp_path / "keys.json", "a")
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))

    async def talk(reader, writer):
        writer.write(upload(300_000, "X-API-Key: as_wrong\r\nExpect: 100-continue\r\n")[0])
        return await asyncio.wait_for(reader.read(), 5)

    found, _ = serving(graphs, talk, QUICK, guard=guard)
    assert found.startswith(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n")


def test_an_idle_connection_is_closed_and_one_that_waits_for_its_answer_is_not(graphs):
    async def talk(reader, writer):
        writer.write(asked() * 20)  # a second of work: longer than a connection may be idle
        got = await answers(reader, 20)
        return got, await reader.read()

    (got, rest), _ = serving(graphs, talk, QUICK)
    assert [answer.status for answer in got] == [200] * 20
    assert rest == b""


@pytest.mark.parametrize("name", ["X-Request-Timeout-Ms", "x-envoy-expected-rq-timeout-ms"])
def test_a_deadline_that_passes_in_the_queue_drops_the_work(graphs, name):
    async def talk(reader, writer):
        writer.write(asked() + asked(extra=f"{name}: 20\r\n") + asked(extra=f"{name}: 5000\r\n"))
        begun_s = time.monotonic()
        return await answers(reader, 3), time.monotonic() - begun_s

    (got, took_s), counted = serving(graphs, talk)
    assert [answer.status for answer in got] == [200, 504, 200]
    assert "deadline passed" in json.loads(got[1].body)["error"]
    assert counted.answered == 2
    assert counted.failures["late"] == 1
    assert counted.compute_s < 0.14  # twice 50 ms: the late one was not computed
    assert took_s > 0.1


def test_who_is_late_or_gone_keeps_no_place_in_the_queue_and_is_told_before_a_core_is_free(graphs):
    async def talk(reader, writer):
        writer.write(asked() * 10)
        address = writer.get_extra_info("peername")[:2]
        others = [await asyncio.open_connection(*address) for _ in range(3)]
        (late, hears), (_, gone), (last, asks) = others
        hears.write(asked(extra="X-Request-Timeout-Ms: 1\r\n"))
        gone.write(asked())
        (told,) = await answers(late, 1)
        behind = len(AnswerReader().feed(bytes(reader._buffer)))
        vanish(gone)
        await asyncio.sleep(0.01)
        asks.write(asked() * 2)  # there is room for 12
        got = await answers(last, 2)
        for _, one in others:
            one.close()
        return told, behind, got, await answers(reader, 10)

    (told, behind, got, first), counted = serving(graphs, talk, queue=11)
    assert told.status == 504
    assert behind < 10
    assert [answer.status for answer in (*first, *got)] == [200] * 12
    assert counted.answered == 12
    assert (counted.failures["late"], counted.failures["cancelled"], counted.failed) == (1, 1, 1)


def test_who_is_gone_before_the_answer_is_told_of_too():
    told = []

    async def run():
        begun = asyncio.Event()

        async def never():
            begun.set()
            await asyncio.Event().wait()

        answer = observed(
            lambda head, body, arrived_s: never(),
            oip.error_response,
            lambda head, status, response, arrived_s: told.append((head.path, status, response)),
        )
        listener = await _listening.listen(answer, oip.error_response, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        await begun.wait()
        vanish(writer)
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.001)
        await listener.drain(2)

    uvloop.run(run())
    assert told == [("/v2", 499, b"")]


def test_who_waits_for_an_answer_that_lasts_and_is_gone_is_told_of_and_the_work_given_up():
    told, gave_up = [], []

    async def run():
        def answer(head, body, arrived_s):
            pending = Pending()
            pending.give_up = lambda: gave_up.append(head.path)
            return pending

        def tell(head, status, response, arrived_s):
            told.append((head.path, status, response))

        listener = await _listening.listen(
            observed(answer, oip.error_response, tell), oip.error_response, "127.0.0.1", 0
        )
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
        await asyncio.sleep(0.05)
        vanish(writer)
        async with asyncio.timeout(10):
            while len(told) < 2:
                await asyncio.sleep(0.001)
        await listener.drain(2)

    uvloop.run(run())
    assert told == [("/v2", 499, b"")] * 2
    assert gave_up == ["/v2"] * 2


def test_the_limit_of_what_is_under_way_counts_requests_of_a_known_form_until_they_end(graphs, tmp_path):
    key = new_key(tmp_path / "keys.json", "a", concurrency=2)
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))
    request = asked(extra=f"X-API-Key: {key}\r\n")

    async def talk(reader, writer):
        address = writer.get_extra_info("peername")[:2]
        others = [await asyncio.open_connection(*address) for _ in range(2)]
        found = []
        for _ in range(4):  # the third is of a known form
            writer.write(request)
            found += await answers(reader, 1)
        for _, one in others:
            one.write(request)
        await asyncio.sleep(0.02)
        writer.write(request)
        found += await answers(reader, 1)
        vanish(others[1][1])
        await asyncio.sleep(0.01)
        writer.write(request)
        found += [*await answers(reader, 1), *await answers(others[0][0], 1)]
        writer.write(request * 2)
        found += await answers(reader, 2)
        others[0][1].close()
        return found

    found, counted = serving(graphs, talk, guard=guard)
    assert [answer.status for answer in found] == [200] * 4 + [429] + [200] * 4
    assert counted.failures["cancelled"] == 1


LARGE = np.random.default_rng(0).normal(size=(6000, 4)).astype("float32")  # 96 kB


def large(model, k=0.0, extra=""):
    return wire.infer_request(model, [(X, LARGE + np.float32(k))], host="h", extra=extra)


async def in_pieces(writer, request, *cuts):
    """Each piece is read apart."""
    for a, b in itertools.pairwise((0, *cuts, len(request))):
        writer.write(request[a:b])
        await asyncio.sleep(0.02)


@pytest.fixture
def held(monkeypatch):
    """The sizes of requests that were held from their front on."""
    found, begin = [], Held.begin
    monkeypatch.setattr(Held, "begin", lambda self, data, whole: found.append(whole) or begin(self, data, whole))
    return found


@pytest.mark.parametrize("model", ["quick", "slow"])
def test_large_bodies_of_a_known_header_come_in_pieces(graphs, model, held):
    async def talk(reader, writer):
        found = []
        for k in range(6):
            await in_pieces(writer, large(model, k), *((40, 300) if k == 3 else (400, 50_000)), 90_000)
            found += await answers(reader, 1)
        # The end of one comes with the next whole, and with the front of a third.
        three = large(model, 6) + large(model, 7) + large(model, 8)
        await in_pieces(writer, three, 70_000, 250_000)
        return found + await answers(reader, 3)

    found, counted = serving(graphs, talk)
    engine = Engine(graphs["whole"])
    assert counted.answered == (9 if model == "slow" else 0)
    assert len(held) >= 5, "those after the first two, but for the one whose header came in two"
    for k, answer in enumerate(found):
        response = wire.parse_response(answer.body, int(answer.headers["inference-header-content-length"]))
        np.testing.assert_array_equal(response.outputs[0][1], engine.run([LARGE + np.float32(k)])[0])


def test_large_bodies_of_a_known_header_are_bounded_too(graphs):
    async def talk(reader, writer):
        request = large("quick")
        address = writer.get_extra_info("peername")[:2]
        pairs = [(reader, writer), *[await asyncio.open_connection(*address) for _ in range(2)]]
        found = []
        for one, other in pairs * 3:  # now header and form are known
            await in_pieces(other, request, 80_000)
            found += await answers(one, 1)
        (_, first), (_, second), (third, asks) = pairs
        for one in (first, second):
            await in_pieces(one, request[:80_000], 1000)
        await in_pieces(asks, request, 80_000)
        found += await answers(third, 1)
        first.write(request[80_000:])
        found += await answers(reader, 1)
        vanish(second)
        for _ in range(2):
            await in_pieces(asks, request, 60_000, 80_000)
            found += await answers(third, 1)
        asks.close()
        return found

    found, _ = serving(graphs, talk, Limits(bodies_bytes=200_000))
    assert [answer.status for answer in found] == [200] * 9 + [503] + [200] * 3


def test_room_is_counted_until_who_answers_lets_go():
    bodies = Bodies()
    first, second = Held(one := Share(bodies), Limits(bodies_bytes=200_000)), Share(bodies)
    piece = b"x" * 60_000
    assert first.begin(piece, 120_000)
    assert (bodies.held_bytes, first.held_bytes) == (60_000, 60_000)
    data, counted_bytes, room = first.add(piece)
    assert (len(data), counted_bytes, room) == (120_000, 120_000, True)
    first.drop()  # what is whole is no longer its own
    assert (bodies.held_bytes, first.held_bytes) == (120_000, 0)
    assert first.begin(piece, 120_000)
    second.take(10_000)
    assert first.add(piece) == (piece + piece, 0, False), "though it is all there"
    assert bodies.held_bytes == 130_000
    assert first.begin(piece, 120_000)
    assert not Held(second, Limits(bodies_bytes=200_000)).begin(piece, 120_000)
    first.drop()
    one.let_go(counted_bytes)
    assert bodies.held_bytes == 10_000
    assert first.begin(piece, 60_001)  # below 64 KiB nothing is counted
    assert first.add(piece) == (piece + piece, 0, True)
    assert bodies.held_bytes == 10_000


def test_a_large_body_is_not_held_for_a_key_that_was_taken_away(graphs, tmp_path, monkeypatch, held):
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    key = new_key(tmp_path / "keys.json", "a")
    new_key(tmp_path / "keys.json", "b")
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))
    request = large("quick", extra=f"X-API-Key: {key}\r\n")

    async def talk(reader, writer):
        found = []
        for _ in range(4):
            await in_pieces(writer, request, 50_000)
            found += await answers(reader, 1)
        before = len(held)
        tenants = json.loads((tmp_path / "keys.json").read_text())["tenants"]
        (tmp_path / "keys.json").write_text(json.dumps({"tenants": tenants[1:]}))
        await asyncio.sleep(2.1)  # that a key is believed
        await in_pieces(writer, request, 50_000)
        return [*found, *await answers(reader, 1)], before

    (found, before), _ = serving(graphs, talk, guard=guard)
    assert [answer.status for answer in found] == [200] * 4 + [401]
    assert len(held) == before > 0


def test_a_full_queue_says_when_to_come_again(graphs):
    async def talk(reader, writer):
        writer.write(asked() * 5)
        return await answers(reader, 5)

    got, counted = serving(graphs, talk, queue=2)
    assert [answer.status for answer in got] == [200, 200, 200, 503, 503]
    assert got[-1].headers["retry-after"] == "1"
    assert counted.failures["rejected"] == 2


def test_health_answers_while_the_engine_works(graphs):
    async def talk(reader, writer):
        writer.write(asked())
        await asyncio.sleep(0.01)
        host, port = writer.get_extra_info("peername")
        other, second = await asyncio.open_connection(host, port)
        second.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        (health,) = await answers(other, 1)
        waiting = not reader._buffer
        second.close()
        await answers(reader, 1)
        return health, waiting

    (health, waiting), _ = serving(graphs, talk)
    assert health.status == 200
    assert waiting
