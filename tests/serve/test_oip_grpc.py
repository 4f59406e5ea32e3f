"""The Open Inference Protocol V2 over gRPC as tritonclient sees it, plain and asyncio, at a service of two workers."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from airserve.model import Engine
from airserve.serve.guarding import new_key
from airserve.serve.protocols._messages import MESSAGES, SERVICE, classes

Address = str


def service(folder, *words) -> Iterator[tuple[Address, subprocess.Popen]]:
    command = [sys.executable, "-m", "airserve.cli", "serve", *map(str, words), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        yield re.search(r"grpc://(\S+)", line)[1], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


@pytest.fixture(scope="module")
def address(graphs, tmp_path_factory):
    sources = [graphs[name] for name in ("whole", "same")]
    yield from (where for where, _ in service(tmp_path_factory.mktemp("grpc"), *sources, "--workers", 2))


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as one:
        yield one


def given(name, array, datatype="FP32"):
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


def x(k=1.0, rows=2):
    return np.full((rows, 4), k, "float32")


def test_the_messages_are_those_of_the_protocol():
    """Field by field against the classes that tritonclient was generated with, from the published definition."""
    for name, ours in classes().items():
        theirs = service_pb2
        for part in name.split("."):
            theirs = getattr(theirs, part)
        known = {field.name: field for field in theirs.DESCRIPTOR.fields}
        for field in ours.DESCRIPTOR.fields:
            same = known[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated), name
            if field.message_type is not None:
                assert field.message_type.full_name == same.message_type.full_name
        if name.startswith(("ModelInfer", "InferTensor", "InferParam", "ModelMetadata", "RepositoryIndex")):
            assert set(known) == set(ours.DESCRIPTOR.fields_by_name), name
    assert service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == SERVICE
    assert len(MESSAGES) == len(classes())


def test_lists_and_describes(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("whole")
    assert client.is_model_ready("whole", "1")
    assert not client.is_model_ready("whole", "2")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "airserve"
    described = client.get_model_metadata("whole", as_json=True)
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert {m.name for m in client.get_model_repository_index().models} == {"whole", "same"}


def test_infers_again_and_again_in_turn_with_others(client, graphs):
    engine = Engine(graphs["whole"])
    for rows in (2, 2, 2, 1, 2, 1, 1, 1, 3):
        for k in (1.0, -2.0, 3.0):
            result = client.infer("whole", [given("x", x(k, rows))])
            np.testing.assert_allclose(result.as_numpy("y"), engine.run([x(k, rows)])[0], rtol=1e-6)
            assert result.get_response().model_version == "1"


def test_ids_outputs_and_statistics(client):
    def count():
        return client.get_inference_statistics("whole").model_stats[0].inference_stats.success.count

    before = count()
    for k in range(6):
        result = client.infer("whole", [given("x", x())], request_id=str(k), outputs=[triton.InferRequestedOutput("y")])
        assert result.get_response().id == str(k)
    assert count() == before + 6
    assert {m.name for m in client.get_inference_statistics().model_stats} == {"whole", "same"}


VALUES = {
    "BOOL": np.array([[True, False]]), "FP16": np.array([[0.5, -65504]], "float16"),
    "FP32": np.array([[0.1, -3.4e38]], "float32"), "FP64": np.array([[5e-324, -1.7e308]]),
    "BYTES": np.array([["", "ä\0x"]], dtype=object),
    **{f"{k}{b}": np.array([[np.iinfo(f"{k.lower()}{b}").min, np.iinfo(f"{k.lower()}{b}").max]], f"{k.lower()}{b}")
       for k in ("INT", "UINT") for b in (8, 16, 32, 64)},
}  # fmt: skip


def test_every_datatype_comes_back_as_it_went_raw(client):
    for _ in range(3):  # the third is of a known form, where that is kept
        result = client.infer("same", [given(f"in_{t}", array, t) for t, array in VALUES.items()])
        for t, array in VALUES.items():
            back = result.as_numpy(f"out_{t}")
            if t == "BYTES":
                back = np.array([[b.decode() for b in back[0]]], object)
            np.testing.assert_array_equal(back, array, err_msg=t)


def test_typed_contents(address):
    fields = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

        def ask(skip=()):
            request = service_pb2.ModelInferRequest(model_name="same")
            for t, array in VALUES.items():
                one = request.inputs.add(name=f"in_{t}", datatype=t, shape=array.shape)
                values = [v.encode() for v in array[0]] if t == "BYTES" else array[0].tolist()
                if t != "FP16" or t in skip:
                    field = fields.get(t) or ("uint" if t.startswith("UINT") else "int")
                    getattr(one.contents, f"{field}_contents").extend([] if t in skip else values)
            return call(request)

        with pytest.raises(grpc.RpcError) as caught:
            ask()
        assert "FP16, which has no typed contents" in caught.value.details()
        request = service_pb2.ModelInferRequest(model_name="whole")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
        response = call(request)
        assert len(response.raw_output_contents) == 1
        assert len(response.raw_output_contents[0]) == 12
        for data in (b"\xff\xff\xff", b"", b"\x0a\x05whole\x3a\x01x"):
            raw = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                raw(data)
            assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("model", "name", "array", "status", "says"),
    [
        ("nothing", "x", x(), "NOT_FOUND", "has no model 'nothing'"),
        ("whole", "z", x(), "INVALID_ARGUMENT", "lacks input 'x'; it has no input 'z'"),
        ("whole", "x", np.zeros((1, 5), "f4"), "INVALID_ARGUMENT", "is float32 [1, 5]; expected float32 [-1, 4]"),
    ],
)
def test_what_does_not_fit_is_one_sentence(client, model, name, array, status, says):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given(name, array)])
    assert caught.value.status() == f"StatusCode.{status}"
    assert says in caught.value.message()


def test_load_and_unload(client, address):
    client.unload_model("same")
    for _ in range(4):
        with triton.InferenceServerClient(address) as other:  # any worker
            assert not other.is_model_ready("same")
    with pytest.raises(InferenceServerException, match="no source of this service"):
        client.load_model("nothing")
    client.load_model("same")
    assert client.is_model_ready("same")


def test_asyncio_and_streams(address, graphs):
    wanted = Engine(graphs["whole"]).run([x()])[0]

    async def run():
        async with triton_aio.InferenceServerClient(address) as one:
            inputs = [triton_aio.InferInput("x", [2, 4], "FP32")]
            inputs[0].set_data_from_numpy(x())
            results = await asyncio.gather(*(one.infer("whole", inputs) for _ in range(20)))
            return [result.as_numpy("y") for result in results]

    for y in asyncio.run(run()):
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
    got = []
    with triton.InferenceServerClient(address) as one:
        one.start_stream(lambda result, error: got.append((result, error)))
        one.async_stream_infer("whole", [given("x", x())])
        one.async_stream_infer("nothing", [given("x", x())])
        one.async_stream_infer("whole", [given("x", x())])
        one.stop_stream()
    assert [error is None for _, error in got] == [True, False, True]
    np.testing.assert_allclose(got[2][0].as_numpy("y"), wanted, rtol=1e-6)


def test_keys(graphs, tmp_path):
    key, other = (new_key(tmp_path / "keys.json", name, models=[m]) for name, m in (("a", "whole"), ("b", "same")))
    for where, _ in service(tmp_path, graphs["whole"], "--keys", tmp_path / "keys.json"):
        with triton.InferenceServerClient(where) as client:
            assert client.is_server_live()
            for headers, status in (
                (None, "UNAUTHENTICATED"),
                ({"authorization": f"Bearer {other}"}, "PERMISSION_DENIED"),
            ):
                for _ in range(3):
                    with pytest.raises(InferenceServerException) as caught:
                        client.infer("whole", [given("x", x())], headers=headers)
                    assert caught.value.status() == f"StatusCode.{status}"
            headers = {"authorization": f"Bearer {key}"}
            for _ in range(3):
                assert client.infer("whole", [given("x", x())], headers=headers).as_numpy("y").shape == (2, 3)
            with pytest.raises(InferenceServerException, match="that takes a key of an admin"):
                client.unload_model("whole", headers=headers)
