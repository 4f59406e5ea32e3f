"""The Open Inference Protocol V2 as a client of another house sees it: tritonclient lists, reads and infers."""

import asyncio
import io
import time

import httptools  # noqa: F401  (loaded before gevent looks at the ssl module)
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from airserve.model import Engine

ALL = {"whole", "tail", "half", "same", "photo", "slow"}


@pytest.fixture
def client(mast):
    with triton.InferenceServerClient(mast.url) as one:
        yield one


@pytest.fixture
def device(camera):
    with triton.InferenceServerClient(camera.url) as one:
        yield one


def given(name, array, binary=True, datatype="FP32"):
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array, binary_data=binary)
    return one


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(5, 4)).astype("float32")


def test_lists_and_describes(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "airserve"
    assert {m["name"] for m in client.get_model_repository_index()} == {
        "whole",
        "tail",
        "half",
        "same",
        "photo",
        "slow",
    }
    assert client.is_model_ready("whole")
    assert client.is_model_ready("whole", "1")
    assert not client.is_model_ready("whole", "2")
    assert not client.is_model_ready("nothing")
    assert client.get_model_metadata("whole", "1") == {
        "name": "whole",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert client.get_model_metadata("photo")["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("got", [True, False])
@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
def test_infers_in_binary_and_json(client, graphs, x, sent, got, encoding):
    wanted = Engine(graphs["whole"]).run([x])[0]
    outputs = [triton.InferRequestedOutput("y", binary_data=got)]
    result = client.infer(
        "whole", [given("x", x, sent)], "1", outputs, request_id="7", request_compression_algorithm=encoding
    )
    np.testing.assert_allclose(result.as_numpy("y"), wanted, rtol=1e-6)
    assert result.get_response()["id"] == "7"
    assert ("data" in result.get_output("y")) != got


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("got", [True, False])
def test_every_datatype_comes_back_as_it_went(client, sent, got):
    values = {
        "BOOL": np.array([[True, False], [False, True]]),
        "FP16": np.array([[0.5, -65504], [6.1e-5, 0]], "float16"),
        "FP32": np.array([[0.1, -3.4e38], [1e-38, 0]], "float32"),
        "FP64": np.array([[0.1, -1.7e308], [5e-324, 0]], "float64"),
        "BYTES": np.array([["", "a"], ["ä\0ö", "x" * 300]], dtype=object),
    }
    for bits in (8, 16, 32, 64):
        for kind in ("INT", "UINT"):
            bounds = np.iinfo(f"{kind.lower()}{bits}")
            values[f"{kind}{bits}"] = np.array([[bounds.min, bounds.max], [0, 1]], bounds.dtype)
    inputs = [given(f"in_{t}", array, sent, t) for t, array in values.items()]
    outputs = [triton.InferRequestedOutput(f"out_{t}", binary_data=got) for t in values]
    result = client.infer("same", inputs, outputs=outputs)
    for t, array in values.items():
        back = result.as_numpy(f"out_{t}")
        if t == "BYTES":
            back = np.array([b.decode() if isinstance(b, bytes) else b for b in back.ravel()], object).reshape(2, 2)
        np.testing.assert_array_equal(back, array, err_msg=t)


def test_bfloat16_travels_as_binary_alone(client):
    array = np.array([[1.5, -2.0], [3.0e38, 0.0]], ml_dtypes.bfloat16)
    for _ in range(3):
        result = client.infer("half", [given("x", array, True, "BF16")])
        np.testing.assert_array_equal(result.as_numpy("y").astype("float32"), array.astype("float32"))
    outputs = [triton.InferRequestedOutput("y", binary_data=False)]
    with pytest.raises(InferenceServerException, match="BF16, which JSON cannot carry; ask for it with binary_data"):
        client.infer("half", [given("x", array, True, "BF16")], outputs=outputs)
    with pytest.raises(InferenceServerException, match=r"is uint16 \[2, 2\]; expected bfloat16 \[-1, 2\]"):
        client.infer("half", [given("x", np.zeros((2, 2), "u2"), True, "UINT16")])


def test_the_asyncio_client_of_tritonclient(mast, graphs, x):
    wanted = Engine(graphs["whole"]).run([x])[0]

    async def run():
        async with triton_aio.InferenceServerClient(mast.url) as one:
            assert await one.is_model_ready("whole")
            results = await asyncio.gather(*(one.infer("whole", [given("x", x, k % 2 == 0)]) for k in range(20)))
            return [result.as_numpy("y") for result in results]

    for y in asyncio.run(run()):
        np.testing.assert_allclose(y, wanted, rtol=1e-6)


def test_only_the_outputs_asked_for_are_sent(client):
    row = np.zeros((1, 2), "int8")
    others = [
        given(f"in_{t}", np.zeros((1, 2), d), True, t)
        for t, d in {
            "BOOL": bool, "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT16": "i2", "INT32": "i4",
            "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
        }.items()
    ]  # fmt: skip
    text = given("in_BYTES", np.array([["a", "b"]], object), True, "BYTES")
    asked = [triton.InferRequestedOutput("out_INT8")]
    result = client.infer("same", [given("in_INT8", row, True, "INT8"), text, *others], outputs=asked)
    assert [o["name"] for o in result.get_response()["outputs"]] == ["out_INT8"]


def jpeg(size=(8, 8), color=(200, 100, 0)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_a_jpeg_becomes_an_answer(client):
    data = np.array([jpeg(), jpeg(color=(0, 0, 0))], object)
    result = client.infer("photo", [given("image", data, True, "BYTES")])
    np.testing.assert_allclose(result.as_numpy("mean"), [100, 0], atol=1.5)


@pytest.mark.parametrize(
    ("model", "name", "array", "datatype", "status", "says"),
    [
        ("nothing", "x", np.zeros((1, 4), "f4"), "FP32", 404, "mast has no model 'nothing'; it answers to whole, tail"),
        ("whole", "z", np.zeros((1, 4), "f4"), "FP32", 400, "lacks input 'x'; it has no input 'z'"),
        ("whole", "x", np.zeros((1, 5), "f4"), "FP32", 400, "is float32 [1, 5]; expected float32 [-1, 4]"),
        ("whole", "x", np.zeros((1, 4), "f8"), "FP64", 400, "is float64 [1, 4]; expected float32 [-1, 4]"),
        ("whole", "x", np.zeros(4, "f4"), "FP32", 400, "is float32 [4]; expected float32 [-1, 4]"),
        ("photo", "image", np.array([b"no"], object), "BYTES", 400, "the picture cannot be decoded"),
        (
            "photo",
            "image",
            np.array([jpeg((9, 8))], object),
            "BYTES",
            400,
            "becomes uint8 [1, 8, 9, 3]; the model takes",
        ),
        ("same", "in_INT8", np.zeros((1, 2), "i1"), "INT8", 400, "lacks input 'in_BOOL'. It takes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(client, model, name, array, datatype, status, says):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given(name, array, True, datatype)])
    assert caught.value.status() == str(status)
    assert says in caught.value.message()


def test_one_input_too_many_and_outputs_that_do_not_exist(client, x):
    with pytest.raises(InferenceServerException, match="whole has no input 'z'"):
        client.infer("whole", [given("x", x), given("z", x)])
    with pytest.raises(InferenceServerException, match=r"whole has no output 'q'\. It gives y"):
        client.infer("whole", [given("x", x)], outputs=[triton.InferRequestedOutput("q")])
    with pytest.raises(InferenceServerException, match="classification is not served"):
        client.infer("whole", [given("x", x)], outputs=[triton.InferRequestedOutput("y", class_count=2)])


def test_statistics_count(client, x):
    def count():
        return client.get_inference_statistics("whole")["model_stats"][0]["inference_stats"]["success"]["count"]

    before = count()
    client.infer("whole", [given("x", x)])
    assert count() == before + 1
    assert {m["name"] for m in client.get_inference_statistics()["model_stats"]} >= {"whole", "slow"}


@pytest.mark.parametrize("name", ["cut", "cut-zstd"])
def test_a_head_and_its_tail_are_the_whole(device, client, graphs, x, name):
    wanted = Engine(graphs["whole"]).run([x])[0]
    np.testing.assert_allclose(device.infer(name, [given("x", x)]).as_numpy("y"), wanted, atol=2e-6)
    np.testing.assert_allclose(client.infer("whole", [given("x", x)]).as_numpy("y"), wanted, atol=2e-6)
    described = device.get_model_metadata(name)
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert described["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]


def test_a_tail_is_called_by_any_client(client, graphs):
    hidden = np.random.default_rng(2).normal(size=(3, 64)).astype("float32")
    result = client.infer("tail", [given("hidden", hidden)])
    np.testing.assert_allclose(result.as_numpy("y"), Engine(graphs["tail"]).run([hidden])[0], rtol=1e-6)


def test_a_head_without_its_tail_says_so(device, x):
    with pytest.raises(InferenceServerException, match=r"nothing answers 404: mast has no model 'nothing'") as caught:
        device.infer("lost", [given("x", x)])
    assert caught.value.status() == "502"


def test_a_timeout_that_passes_in_the_queue(client, x):
    waiting = [client.async_infer("slow", [given("x", x)]) for _ in range(1)]
    assert all(one.get_result().as_numpy("y").shape == (5, 3) for one in waiting)
    with triton.InferenceServerClient(client._client_stub.host + f":{client._client_stub.port}", concurrency=8) as many:
        statuses = []
        until_s = time.monotonic() + 30  # a client that is held up does not ask them all within that time
        while set(statuses) != {"200", "504"} and time.monotonic() < until_s:
            for one in [many.async_infer("slow", [given("x", x)], timeout=60_000) for _ in range(8)]:
                try:
                    one.get_result()
                    statuses.append("200")
                except InferenceServerException as error:
                    statuses.append(error.status())
                    assert "waited" in error.message()
    assert sorted(set(statuses)) == ["200", "504"]
