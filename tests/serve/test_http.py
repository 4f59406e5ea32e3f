"""HTTP/1.1 as clients may send it, well and ill: pipelines, chunks, limits, noise, and the end of a process."""

import gzip
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airserve import wire
from airserve.contract import Deployment, Endpoint, SiteProcess, to_plain
from airserve.model import Engine, Function, Tensor
from airserve.serve.connecting import AnswerReader
from airserve.timing import parse_timing

X = Tensor("x", "float32", (-1, 4))
NOISE = [
    b"\r\n\r\n", b"GET", b"POST /v2/models/whole/infer HTTP/1.1\r\n", b"Content-Length: 5\r\n", b"Host: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"{", b'{"inputs":', b"HTTP/9.9",
    b"\x00\xff", b"Inference-Header-Content-Length: 99999999999999999999\r\n", b"Content-Encoding: zstd\r\n",
    b"Content-Length: -1\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Expect: 100-continue\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Content-Length: 99999999999999999999999\r\n", b"Connection: close\r\n", b"GET /v2 HTTP/1.0\r\n\r\n",
]  # fmt: skip
quiet = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def connect(running):
    return socket.create_connection(("127.0.0.1", running.port), timeout=5)


def answers(one, count):
    """The next `count` responses of a socket."""
    reader, got = AnswerReader(), []
    while len(got) < count:
        data = one.recv(1 << 16)
        assert data, f"closed after {len(got)} answers"
        got += reader.feed(data)
    return got


def ask(running, request):
    with connect(running) as one:
        one.sendall(request)
        return answers(one, 1)[0]


def post(path, body, **headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def asked(k=1.0, **options):
    return wire.infer_request("whole", [(X, np.full((1, 4), k, "float32"))], host="h", **options)


def outputs(answer):
    assert answer.status == 200, answer.body
    return wire.parse_response(answer.body, int(answer.headers["inference-header-content-length"])).outputs


def still_answers(running, graphs):
    got = outputs(ask(running, asked(2.0)))[0][1]
    np.testing.assert_allclose(got, Engine(graphs["whole"]).run([np.full((1, 4), 2.0, "float32")])[0], rtol=1e-6)


def test_pipelined_answers_come_in_order_though_work_does_not_end_in_order(mast, graphs):
    engine = Engine(graphs["whole"])
    names = ["slow", "whole", "slow", "whole", "whole"]
    inputs = [np.full((1, 4), k, "float32") for k in range(len(names))]
    requests = [wire.infer_request(n, [(X, x)], host="h") for n, x in zip(names, inputs, strict=True)]
    with connect(mast) as one:
        one.sendall(b"".join(requests) + b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
        got = answers(one, len(names) + 1)
        for answer, x in zip(got[:-1], inputs, strict=True):
            np.testing.assert_allclose(outputs(answer)[0][1], engine.run([x])[0], rtol=1e-6, atol=1e-6)
        assert json.loads(got[-1].body) == {"live": True}
        one.sendall(asked())  # and the connection is kept
        assert answers(one, 1)[0].status == 200


def test_a_request_in_single_bytes_and_in_chunks(mast):
    with connect(mast) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in asked():
            one.sendall(bytes([byte]))
        whole = outputs(answers(one, 1)[0])[0][1]
        head, _, body = asked().partition(b"\r\n\r\n")
        lines = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:20], body[20:]))
        one.sendall(lines + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        np.testing.assert_array_equal(outputs(answers(one, 1)[0])[0][1], whole)


@pytest.mark.parametrize(
    ("encoding", "squeeze"),
    [
        ("zstd", zstandard.ZstdCompressor().compress),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
    ],
)
def test_bodies_travel_compressed(mast, encoding, squeeze):
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 1, 1, 1]]}]}).encode()
    answer = ask(mast, post("/v2/models/whole/infer", squeeze(body), Content_Encoding=encoding))
    assert json.loads(answer.body)["outputs"][0]["shape"] == [1, 3]
    damaged = ask(mast, post("/v2/models/whole/infer", squeeze(body)[:-9], Content_Encoding=encoding))
    assert damaged.status == 400


def test_a_bomb_is_refused_and_an_encoding_unknown(mast, graphs):
    for squeeze, name in (
        (zstandard.ZstdCompressor().compress, "zstd"),
        (zstandard.ZstdCompressor(write_content_size=False).compress, "zstd"),
        (gzip.compress, "gzip"),
    ):
        bomb = squeeze(bytes(wire.BODY_LIMIT_BYTES + 1))
        assert ask(mast, post("/v2/models/whole/infer", bomb, Content_Encoding=name)).status == 413
    assert ask(mast, post("/v2/models/whole/infer", b"{}", Content_Encoding="br")).status == 415
    still_answers(mast, graphs)


def test_server_timing_names_queue_and_compute(mast):
    answer = ask(mast, wire.infer_request("slow", [(X, np.zeros((1, 4), "float32"))], host="h"))
    queue, compute = parse_timing(answer.headers["server-timing"])
    assert (queue.name, queue.desc, compute.name, compute.desc) == ("queue", "mast", "compute", "mast")
    assert 0 <= queue.ms < 50 <= compute.ms < 80


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (post("/v2/models/whole/infer", b""), 400),
        (post("/v2/models/whole/infer", b"{}"), 400),
        (post("/v2/models/whole/infer", b"[" * 2000), 400),
        (post("/v2/models/whole/infer", b"\xff\xfe"), 400),
        (post("/v2/models/whole/infer", b'{"inputs": 3}'), 400),
        (post("/v2/models/whole/infer", b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}'), 400),
        *(
            (
                post(
                    "/v2/models/whole/infer",
                    json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": []}]}).encode(),
                ),
                400,
            )
            for shape in ([0, 2**31 - 1, 2**31 - 1, 2**31 - 1], [0] + [1] * 70, [2**31], [-1], [1.5], [[1]], "4")
        ),
        (post("/v2/models/whole/infer", b"{}", Inference_Header_Content_Length=-1), 400),
        (post("/v2/models/whole/infer", b"{}", Inference_Header_Content_Length=3), 400),
        (post("/v2/models/whole/infer", b"{}", Inference_Header_Content_Length="9" * 5000), 400),
        (post("/v2/models/whole/versions/2/infer", b"{}"), 404),
        (b"POST /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET /v2 HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 700_000, 431),
        (b"GET /" + b"a" * 700_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ],
)
def test_what_cannot_be_answered_is_an_error_in_the_form_of_the_protocol(mast, graphs, request_, status):
    answer = ask(mast, request_)
    assert answer.status == status
    sentence = json.loads(answer.body)["error"]
    assert sentence.endswith((".", "?"))
    assert "Traceback" not in sentence
    still_answers(mast, graphs)


@pytest.mark.parametrize(
    ("request_", "allow"),
    [
        (post("/v2/health/live", b""), "GET, HEAD"),
        (b"HEAD /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\n\r\n", "POST"),
        (post("/v1/models", b""), "GET, HEAD"),
        (b"PUT /knowledge-base/v0.2rc1/knowledge-bases HTTP/1.1\r\nHost: h\r\n\r\n", "POST, GET, HEAD"),
    ],
)
def test_what_a_path_does_not_take_is_told_what_it_takes(mast, request_, allow):
    with connect(mast) as one:
        one.sendall(request_)
        lines = one.recv(4096).decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 405 Method Not Allowed"
    assert f"Allow: {allow}" in lines


def test_a_target_in_absolute_form_is_that_of_its_path(mast, graphs):
    whole = asked(2.0)
    given = whole.replace(b" /v2/", b" http://elsewhere:1/v2/", 1)
    assert given != whole
    with connect(mast) as one:
        one.sendall(given + given + b"GET http://h/v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        *infers, server = answers(one, 3)
    expected = Engine(graphs["whole"]).run([np.full((1, 4), 2.0, "float32")])[0]
    for answer in infers:
        np.testing.assert_allclose(outputs(answer)[0][1], expected, rtol=1e-6)
    assert json.loads(server.body)["name"] == "airserve"


UPGRADE = (  # as curl --http2 and Java's HttpClient ask whoever they do not know
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
)


@pytest.mark.parametrize("apart", [1, 1 << 16], ids=["bytes", "whole"])
def test_a_wish_for_another_protocol_is_passed_over_and_the_request_answered(mast, graphs, apart):
    line, _, rest = asked(2.0).partition(b"\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    chunked = b"Transfer-Encoding: chunked\r\n" + b"".join(
        one + b"\r\n" for one in head.split(b"\r\n") if not one.lower().startswith(b"content-length")
    )
    requests = b"".join(
        (
            b"GET /v2 HTTP/1.1\r\nHost: h\r\n" + UPGRADE + b"\r\n",
            b"GET /v2 HTTP/1.1\r\nHost: h\r\nProxy-Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            line + b"\r\n" + UPGRADE + rest,
            line + b"\r\n" + UPGRADE + chunked + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            b"GET /v2 HTTP/1.1\r\nHost: h\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
    )
    with connect(mast) as one:
        for at in range(0, len(requests), apart):
            one.sendall(requests[at : at + apart])
        got = answers(one, 5)
        assert one.recv(1) == b""
    assert [answer.status for answer in got] == [200] * 5
    expected = Engine(graphs["whole"]).run([np.full((1, 4), 2.0, "float32")])[0]
    for answer in got[2:4]:
        np.testing.assert_allclose(outputs(answer)[0][1], expected, rtol=1e-6)


def test_a_body_too_large_is_answered_though_the_client_sends_on(mast):
    one = http.client.HTTPConnection("127.0.0.1", mast.port, timeout=5)
    try:
        one.request("POST", "/v2/models/whole/infer", (bytes(1 << 20) for _ in range(70)), encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the connection was reset before the answer could be read")
    assert one.getresponse().status == 413
    one.close()


def test_keep_alive_close_head_and_http_1_0(mast):
    with connect(mast) as one:
        one.sendall(b"HEAD /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        first = one.recv(4096)
        one.sendall(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200")
        assert one.recv(4096).startswith(first)  # the same header, and then a body (RFC 9110 9.3.2)
        one.sendall(b"GET /v2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert answers(one, 1)[0].status == 200
        assert one.recv(1) == b""
    with connect(mast) as one:
        one.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert answers(one, 1)[0].status == 200
        assert one.recv(1) == b""
    with connect(mast) as one:  # and where it asks for more, it is told that it may (RFC 9112 C.2.2)
        old = asked().replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n", 1)
        for _ in range(4):
            one.sendall(old)
            answer = answers(one, 1)[0]
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
    with connect(mast) as one:  # the client closes its half and waits
        one.sendall(wire.infer_request("slow", [(X, np.zeros((1, 4), "float32"))], host="h"))
        one.shutdown(socket.SHUT_WR)
        assert answers(one, 1)[0].status == 200


def test_a_client_that_expects_to_be_told_to_go_on(mast):
    head, _, body = asked().partition(b"\r\n\r\n")
    with connect(mast) as one:
        one.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 100 Continue")
        one.sendall(body)
        assert answers(one, 1)[0].status == 200


@quiet
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(NOISE)), max_size=12))
def test_noise_never_ends_the_server(mast, graphs, parts):
    with connect(mast) as one:
        one.sendall(b"".join(parts))
        one.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while data := one.recv(1 << 16):
                got += data
        except ConnectionResetError:
            pass
    assert b"Traceback" not in got
    assert b"HTTP/1.1 500" not in got
    still_answers(mast, graphs)


@quiet
@given(st.data())
def test_damaged_requests_never_end_the_server(mast, graphs, data):
    good = asked(compress=data.draw(st.booleans()))
    start = good.index(b"\r\n\r\n") + 4
    body = bytearray(good[start:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    answer = ask(mast, good[:start] + bytes(body))
    assert answer.status in (200, 400, 404, 413)


def test_many_clients_at_once(mast, graphs):
    engine, wrong = Engine(graphs["whole"]), []

    def client(k):
        rng = random.Random(k)
        with connect(mast) as one:
            for _ in range(20):
                x = np.full((1, 4), rng.random(), "float32")
                one.sendall(wire.infer_request(rng.choice(["whole", "slow"]), [(X, x)], host="h"))
                if not np.allclose(outputs(answers(one, 1)[0])[0][1], engine.run([x])[0], rtol=1e-5):
                    wrong.append(k)

    threads = [threading.Thread(target=client, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_begun_is_answered_before_the_end(start, graphs, number):
    running = start(Endpoint("slow", (Function("whole", "model", str(graphs["whole"]), padded_s=0.2),)))
    request = wire.infer_request("slow", [(X, np.zeros((1, 4), "float32"))], host="h")
    with connect(running) as one, connect(running) as idle:
        one.sendall(request * 3)
        time.sleep(0.1)
        running.process.send_signal(number)
        assert [answer.status for answer in answers(one, 3)] == [200] * 3
        assert one.recv(1) == b""
        assert idle.recv(1) == b""
    assert running.process.wait(10) == 0  # another signal would end it at once: it has stopped listening for any
    running.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(running)


def test_a_port_in_use_is_one_sentence(tmp_path, mast):
    path = tmp_path / "deployment.json"
    path.write_text(
        json.dumps(to_plain(Deployment("d", (SiteProcess("edge", "127.0.0.1", mast.port, 1, ()),), None, ())))
    )
    done = subprocess.run(
        [sys.executable, "-m", "airserve.serve.service", path, "edge"], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"edge cannot listen at 127.0.0.1:{mast.port} (address already in use)" in done.stderr
