"""The wire against itself and against tritonclient's own serialisation; what is malformed is one sentence."""

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from airserve import wire
from airserve.model import Tensor
from airserve.serve.connecting import AnswerReader
from airserve.timing import AirBytes, Timing, TimingError, format_air, format_timing, parse_air, parse_timing

NUMBERS = [dtype for dtype in wire.DATATYPE if dtype not in ("bytes", "bfloat16")]
arrays = st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
texts = hnp.arrays(object, hnp.array_shapes(max_dims=2, min_side=0), elements=st.binary(max_size=20))


def named(array, name="x"):
    return Tensor(name, "bytes" if array.dtype == object else str(array.dtype), array.shape), array


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(st.lists(st.one_of(arrays, texts), min_size=1, max_size=3), st.booleans())
def test_a_request_is_read_as_it_was_written(given_, compress):
    inputs = [named(array, f"x{k}") for k, array in enumerate(given_)]
    data = wire.infer_request("a model", inputs, host="h:1", compress=compress, request_id="7")
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    assert head.startswith(b"POST /v2/models/a%20model/infer HTTP/1.1\r\nHost: h:1\r\n")
    assert int(lines[b"Content-Length"]) == len(body)
    plain = wire.decompress(body, lines.get(b"Content-Encoding", b"").decode())
    request = wire.parse_request(plain, int(lines[b"Inference-Header-Content-Length"]))
    assert (request.id, request.requested, request.binary, request.timeout_s) == ("7", None, True, None)
    for tensor, array in inputs:
        same(request.inputs[tensor.name], array)


@settings(deadline=None)
@given(
    st.lists(arrays.filter(lambda a: a.dtype.kind != "f" or np.isfinite(a).all()), min_size=1, max_size=3), st.data()
)
def test_a_response_is_read_as_it_was_written(given_, data):
    outputs = [named(array, f"y{k}") for k, array in enumerate(given_)]
    binary = data.draw(st.sampled_from([True, False, {"y0"}, set()]))
    raw = wire.infer_response("m", "1", outputs, binary=binary, request_id="7", server_timing="queue;dur=1")
    (answer,) = AnswerReader().feed(raw)
    length = answer.headers.get("inference-header-content-length")
    assert answer.headers["server-timing"] == "queue;dur=1"
    assert (length is not None) == (binary is True or binary == {"y0"})
    response = wire.parse_response(answer.body, int(length) if length else None)
    assert (response.model, response.version, response.id) == ("m", "1", "7")
    for (tensor, array), (back_tensor, back) in zip(outputs, response.outputs, strict=True):
        assert back_tensor == tensor
        same(back, array)


@given(arrays)
def test_tensors_travel_as_tritonclient_sends_them(array):
    theirs = triton.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    theirs.set_data_from_numpy(array)
    tensor, _ = named(array)
    assert wire.DATATYPE[tensor.dtype] == theirs.datatype()
    assert wire.pack(tensor, array) == theirs._get_binary_data()


@given(texts)
def test_byte_strings_travel_as_tritonclient_sends_them(array):
    theirs = serialize_byte_tensor(array)
    raw = wire.pack(Tensor("x", "bytes", array.shape), array)
    assert raw == (theirs.item() if theirs.size else b"")
    same(wire.unpack("BYTES", raw, array.shape), array)


def parse(**tensor):
    base = {"name": "x", "shape": [2], "datatype": "FP32"}
    return wire.parse_request(orjson.dumps({"inputs": [{**base, **tensor}]})).inputs["x"]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ({"data": [1, 2.5]}, np.array([1, 2.5], "f4")),
        ({"data": [[1], [2]], "shape": [1, 2]}, np.array([[1, 2]], "f4")),
        ({"data": [], "shape": [0, 3]}, np.zeros((0, 3), "f4")),
        ({"data": [7], "shape": []}, np.array(7, "f4")),
        ({"data": [0, 2**64 - 1], "datatype": "UINT64"}, np.array([0, 2**64 - 1], "u8")),
        ({"data": [-(2**63), 2**63 - 1], "datatype": "INT64"}, np.array([-(2**63), 2**63 - 1], "i8")),
        ({"data": [True, False], "datatype": "BOOL"}, np.array([True, False])),
        ({"data": ["ä", ""], "datatype": "BYTES"}, np.array(["ä".encode(), b""], object)),
    ],
)
def test_json_data(tensor, expected):
    same(parse(**tensor), expected)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ({"data": [1, 2, 3]}, "holds 3 values; its shape [2] wants 2"),
        ({"data": [1, "2"]}, "hold something else"),
        ({"data": [1, None]}, "hold something else"),
        ({"data": [1.5, 2], "datatype": "INT8"}, "hold something else (float64)"),
        ({"data": [1, 300], "datatype": "UINT8"}, "its data pass 0 to 255"),
        ({"data": [1, -1], "datatype": "UINT64"}, "pass 0 to"),
        ({"data": [-1, 2**64 - 1], "datatype": "UINT64"}, "not a regular array of UINT64"),
        ({"data": [1, 0], "datatype": "BOOL"}, "hold something else"),
        ({"data": [1, "a"], "datatype": "BYTES"}, "in JSON its data are strings"),
        ({"data": [[1], [2, 3]]}, "not a regular array"),
        ({"data": [1, 2], "datatype": "BF8"}, "has datatype 'BF8'; choose one of BOOL"),
        ({"data": [1, 2], "shape": [-2]}, "has shape [-2]"),
        ({"data": [1, 2], "shape": "2"}, "has shape 2"),
        ({"data": [1, 2], "shape": [True, 2]}, "has shape"),
        ({}, "neither data nor binary_data_size"),
        ({"data": 3}, "neither data nor binary_data_size"),
        ({"parameters": {"binary_data_size": 8}}, "binary_data_size is 8, 0 bytes are left"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared_memory_region is not served"),
        ({"name": 3}, "an input has no name"),
    ],
)
def test_json_that_does_not_fit_is_never_rounded_or_wrapped(tensor, says):
    with pytest.raises(wire.WireError) as caught:
        parse(**tensor)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "raw", "shape", "says"),
    [
        ("FP32", b"1234567", [2], "holds 7 bytes; FP32 of shape [2] takes 8"),
        ("BYTES", b"\x05\0\0\0ab", [1], "passes the end"),
        ("BYTES", b"\x01\0", [1], "passes the end"),
        ("BYTES", b"\x01\0\0\0a", [2], "holds 1 byte strings; its shape [2] wants 2"),
    ],
)
def test_binary_that_does_not_fit(datatype, raw, shape, says):
    with pytest.raises(wire.WireError) as caught:
        wire.unpack(datatype, raw, shape)
    assert says in str(caught.value)


def test_binary_data_must_add_up():
    header = orjson.dumps(
        {"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}}]}
    )
    same(wire.parse_request(header + b"\x07", len(header)).inputs["x"], np.array([7], "u1"))
    with pytest.raises(wire.WireError, match="2 bytes follow the last binary input"):
        wire.parse_request(header + b"\x07ab", len(header))


def test_outputs_and_parameters():
    body = {"inputs": [{"name": "x", "shape": [0], "datatype": "UINT8", "data": []}]}
    body["outputs"] = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    body["parameters"] = {"timeout": 1500, "binary_data_output": False}
    request = wire.parse_request(orjson.dumps(body))
    assert (request.requested, request.binary, request.timeout_s) == ({"a": True, "b": False}, False, 0.0015)
    for key, value in (("outputs", [3]), ("outputs", 3), ("parameters", [1]), ("parameters", {"timeout": "1"})):
        with pytest.raises(wire.WireError):
            wire.parse_request(orjson.dumps({**body, key: value}))


@settings(deadline=None, max_examples=300)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["FP32", "BYTES", "BOOL", "UINT8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size"]),
        inner, max_size=5,
    ), max_leaves=15,
))  # fmt: skip
def test_any_json_is_read_or_refused(value):
    for body in (orjson.dumps(value), orjson.dumps({"inputs": value}), orjson.dumps({"inputs": [value]})):
        try:
            wire.parse_request(body)
        except wire.WireError as error:
            assert str(error).endswith(".")


def test_timings():
    entries = [Timing("queue", 0.1234, "camera"), Timing("air", 12.0, format_air(AirBytes(4, (0, 9), (3, 5))))]
    back = parse_timing(format_timing(entries))
    assert [one.ms for one in back] == [0.123, 12.0]
    assert parse_air(back[1].desc) == AirBytes(4, (0, 9), (3, 5))
    assert parse_timing("cache, db ; DUR=3 ; desc=a") == [Timing("cache", 0, ""), Timing("db", 3, "a")]
    for value, read in (("a;dur=x", parse_timing), ("1:2", parse_air), ("a:1-2:3-4", parse_air)):
        with pytest.raises(TimingError):
            read(value)
