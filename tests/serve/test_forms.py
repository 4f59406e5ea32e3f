"""Requests that come again: what is worked out once gives the same answers as what is read each time."""

import json
import re
import socket

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from airserve import wire
from airserve.model import Engine, Tensor
from airserve.serve.connecting import AnswerReader
from airserve.serve.gathering import Unread
from airserve.serve.protocols import _numbers
from airserve.serve.protocols._answers import Template
from airserve.serve.protocols._forms import hole
from airserve.serve.protocols._head import Head, another_length, repeatable
from airserve.serve.protocols._numbers import numbers_of
from airserve.tensors import WireError, from_list
from airserve.timing import Timing, format_timing

X = Tensor("x", "float32", (-1, 4))
NUMBERS = ("uint8", "uint64", "int8", "int64", "float16", "float32", "float64")
finite = st.sampled_from((*NUMBERS, "bool")).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(max_dims=3, min_side=0)).filter(
        lambda a: a.dtype.kind != "f" or np.isfinite(a).all()
    )
)


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, min_size=1, max_size=3), st.data())
def test_a_template_writes_what_the_wire_writes(arrays, data):
    outputs = [(Tensor(f"y%{k}", str(a.dtype), a.shape), a) for k, a in enumerate(arrays)]
    binary = [data.draw(st.booleans()) for _ in arrays]
    header = {"model_name": "m", "model_version": "2", "id": "7"}
    template = Template("a%site", header, [t for t, _ in outputs], [a.shape for a in arrays], binary)
    timing = format_timing([Timing("queue", 0.25, "a%site"), Timing("compute", 1.5, "a%site")])
    names = {t.name for (t, _), b in zip(outputs, binary, strict=True) if b}
    expected = wire.infer_response("m", "2", outputs, binary=names, request_id="7", server_timing=timing)
    assert template.write(arrays, 0.00025, 0.0015) == expected


numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text()
)


def read_or_none(read, texts):
    try:
        return read(texts)
    except Unread:
        return None


@pytest.mark.parametrize("with_compiler", [True, False])
@given(st.sampled_from(NUMBERS), st.lists(numbers, min_size=1, max_size=4), st.integers(-1, 1))
def test_numbers_are_read_as_the_wire_reads_them_or_not_at_all(with_compiler, dtype, data, off):
    assert _numbers.compiled is not None
    kept, _numbers.compiled = _numbers.compiled, _numbers.compiled if with_compiler else None
    try:
        read = numbers_of(np.dtype(dtype), max(len(data) + off, 0))
    finally:
        _numbers.compiled = kept
    try:
        text = orjson.dumps(data)
    except TypeError:  # an integer beyond 64 bits
        text = json.dumps(data).encode()
    got = read_or_none(read, [text])
    try:
        expected = from_list(orjson.loads(text), wire.DATATYPE[dtype], [max(len(data) + off, 0)], "x")
    except (WireError, orjson.JSONDecodeError):
        expected = None
    if got is not None:
        assert expected is not None
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    elif expected is not None and all(type(x) is float and abs(x) < 6e4 for x in data):
        assert dtype[0] != "f"  # what is plain is not left to the slower way


@pytest.mark.parametrize("with_compiler", [True, False])
def test_lists_that_are_read_together_each_have_all_of_their_numbers(monkeypatch, with_compiler):
    """One number too many in one and too few in the next would shift whose they are."""
    monkeypatch.setattr(_numbers, "compiled", _numbers.compiled if with_compiler else None)
    read = numbers_of(np.dtype("int16"), 2)
    assert read([b"[1,2]", b"[3, 4]"]).tolist() == [1, 2, 3, 4]
    for other in ([b"[1]", b"[2,3,4]"], [b"[1,2,3]", b"[4]"], [b"[1,2]", b"[]"], [b"[1,2]", b"[3,32768]"]):
        assert read_or_none(read, other) is None
    assert read([b"[5,6]"]).tolist() == [5, 6]


def test_the_hole_is_the_flat_list():
    assert hole(b'{"inputs":[{"data":[[1],[2]]}]}') is None
    assert hole(b'{"inputs":[{"data":[1') is None
    assert hole(b'{"inputs":[{"data":"[1]"}]}') is None
    assert hole(b"{}") is None


def without_timing(stream):
    return re.sub(rb"dur=[0-9.]+", b"dur=0", stream)


def ask(running, stream, cuts=(), count=1):
    """The bytes of the answers, however the requests are torn."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, got, bodies = AnswerReader(), b"", []
        for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            one.sendall(stream[a:b])
        while len(bodies) < count:
            data = one.recv(1 << 16)
            assert data
            got += data
            bodies += reader.feed(data)
        return got


def post(body, **headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )


def asked(k, form):
    x = np.full((1, 4), k, "float32")
    if form == "binary":
        return wire.infer_request("whole", [(X, x)], host="h")
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    if form == "spaced":
        return post(json.dumps({"inputs": [{**one, "data": [float(k)] * 4}], "id": "7"}).encode())
    if form == "nested":
        return post(json.dumps({"inputs": [{**one, "data": [[float(k)] * 4]}]}).encode())
    if form == "decoy":  # the first `data` is not the input's
        return post(json.dumps({"parameters": {"data": [9, 9, 9, 9]}, "inputs": [{**one, "data": [k] * 4}]}).encode())
    if form == "twice":  # JSON takes the last of two
        last = f"[{k},{k},{k},{k}]"
        one = '{"name":"x","shape":[1,4],"datatype":"FP32","data":[9,9,9,9],"data":'
        return post(f'{{"inputs":[{one}{last}}}]}}'.encode())
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    return post(orjson.dumps({"inputs": [{**one, "data": [k] * 4}], "outputs": outputs}))


FORMS = ["binary", "spaced", "nested", "decoy", "twice", "mixed"]


@pytest.mark.parametrize("form", FORMS)
def test_the_third_answer_is_the_first_with_other_numbers(mast, graphs, form):
    engine = Engine(graphs["whole"])
    ks = [3, 4, 5, 6, 5, 3]
    apart = [without_timing(ask(mast, asked(k, form))) for k in ks]
    together = without_timing(ask(mast, b"".join(asked(k, form) for k in ks), count=len(ks)))
    assert together == b"".join(apart)
    for raw, k in zip(apart, ks, strict=True):
        (answer,) = AnswerReader().feed(raw)
        length = answer.headers.get("inference-header-content-length")
        y = wire.parse_response(answer.body, int(length) if length else None).outputs[0][1]
        np.testing.assert_allclose(y.reshape(1, 3), engine.run([np.full((1, 4), k, "float32")])[0], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(FORMS), min_size=1, max_size=3), st.data())
def test_however_the_stream_is_torn_the_answers_are_the_same(mast, forms, data):
    stream = b"".join(asked(k, form) for form in forms for k in (1, 2, 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    count = 3 * len(forms)
    whole = b"".join(without_timing(ask(mast, asked(k, form))) for form in forms for k in (1, 2, 3))
    assert without_timing(ask(mast, stream, cuts, count)) == whole


def test_a_known_form_with_damaged_data_is_refused_and_the_next_is_answered(mast):
    good = post(b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}')
    for bad in (b"[1,2,3,true]", b'[1,2,3,"4]', b"[1,2,3,,4]", b"[1,2,3]--", b"[1,2,3,-]", b"[1,2,nan]", b"[1,2,3,1e]"):
        damaged = post(good.partition(b"\r\n\r\n")[2].replace(b"[1,2,3,4]", bad))
        same_length = good.replace(b"[1,2,3,4]", bad) if len(bad) == 9 else damaged
        got = ask(mast, good * 3 + same_length + good, count=5)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", got)
        assert statuses == [b"200"] * 3 + [b"400", b"200"], bad
    wrong = wire.infer_request("whole", [(X, np.zeros((1, 4), "float32"))], host="h")
    got = ask(mast, wrong * 3 + wrong.replace(b"[1,4]", b"[1,5]") + wrong, count=5)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"] * 3 + [b"400", b"200"]


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: chunked, gzip\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Content-Length: +5\r\n", b"Content-Length: 5 6\r\n", b"Content-Length : 5\r\n", b" Content-Length: 5\r\n",
    b"Content-Length: 0x5\r\n", b"X: a\nContent-Length: 5\r\n", b"Authorization: a\r\nAuthorization: b\r\n",
    b"Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\nContent-Length: 5\r\n",
    b"X: a\x00b\r\n",
])  # fmt: skip
def test_two_readings_of_a_request_are_refused(mast, head):
    """What a proxy and a server might read differently (request smuggling) is refused and ends the connection."""
    request = b"POST /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\n" + head + b"\r\nhello"
    with socket.create_connection(("127.0.0.1", mast.port), timeout=5) as one:
        one.sendall(request + b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
        one.shutdown(socket.SHUT_WR)
        got = b""
        while data := one.recv(1 << 16):
            got += data
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"400"], got


@pytest.mark.parametrize("trailer", [
    b"Content-Encoding: br\r\n", b"Inference-Header-Content-Length: 1\r\n", b"X-Request-Id: seven\r\n",
])  # fmt: skip
def test_a_trailer_is_no_header(mast, trailer):
    """It comes after a proxy has looked at the header (RFC 9110 6.5.1); what follows it is the next request."""
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
    request = (
        b"POST /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n%b\r\n"
    )
    with socket.create_connection(("127.0.0.1", mast.port), timeout=5) as one:
        one.sendall(2 * (request % (len(body), body, trailer)) + request % (len(body), body, b"X: y\r\n" * 40_000))
        one.shutdown(socket.SHUT_WR)
        got = b""
        while data := one.recv(1 << 16):
            got += data
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"200", b"431"], got
    assert b"seven" not in got


def test_http_1_1_wants_a_host(mast):
    with socket.create_connection(("127.0.0.1", mast.port), timeout=5) as one:
        one.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 400")


def test_a_header_that_differs_in_its_length_alone_is_known_and_no_other():
    def head(length, extra=b""):
        return b"POST /v2 HTTP/1.1\r\nHost: h\r\nContent-Length: " + length + b"\r\n" + extra + b"X: 1\r\n\r\n"

    known = Head("POST", b"/v2", {b"host": b"h", b"content-length": b"15", b"x": b"1"})
    known.length = 15
    known = repeatable(known, head(b"15") + b"{")
    assert another_length(known, b"zz" + head(b"7") + b"{}", 2) == (2 + len(head(b"7")), 7)
    assert another_length(known, head(b"999999999"), 0)[1] == 999_999_999
    for other in (
        head(b"+7"), head(b"7 7"), head(b"-7"), head(b""), head(b"0x7"), head(b"7, 7"), head("٧".encode()),
        head(b"9999999999"), head(b"7", b"Transfer-Encoding: chunked\r\n"), head(b"7", b"Content-Length: 9\r\n"),
        head(b"7")[:-1], head(b"7").replace(b"X: 1", b"X: 2"), head(b"7").replace(b"\r\nX", b"\nX"),
        head(b"7").replace(b"POST", b"post"),
    ):  # fmt: skip
        assert another_length(known, other, 0) == (0, 0), other
