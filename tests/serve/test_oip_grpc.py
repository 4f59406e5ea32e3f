"""The Open Inference Protocol V2 over gRPC as tritonclient sees it, plain and asyncio, at a service of two workers."""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from airserve.contract import Endpoint, SiteProcess
from airserve.model import Engine, Function
from airserve.serve.configuration import Configuration
from airserve.serve.guarding import Guard
from airserve.serve.protocols import _calls, oip_grpc
from airserve.serve.protocols._messages import MESSAGES, SERVICE, classes
from airserve.serve.service import Service
from airserve.serve.tenants import new_key

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
    sources = [graphs[name] for name in ("whole", "same", "label")]
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
    assert {m.name for m in client.get_model_repository_index().models} == {"whole", "same", "label"}


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
    assert {m.name for m in client.get_inference_statistics().model_stats} == {"whole", "same", "label"}


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


def test_data_may_come_before_what_they_are_of(address):
    """The fields of a message have no order; such a request has no form to be known by."""
    head = service_pb2.ModelInferRequest(model_name="whole")
    head.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    raw = service_pb2.ModelInferRequest(raw_input_contents=[x().tobytes()])
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        first, *others = [call(raw.SerializeToString() + head.SerializeToString()) for _ in range(6)]
    assert len(service_pb2.ModelInferResponse.FromString(first).raw_output_contents[0]) == 24
    assert others == [first] * 5


def test_words_come_back_from_a_model_that_takes_numbers(client):
    for _ in range(3):
        result = client.infer("label", [given("x", np.eye(4, dtype="float32")[[3, 0, 2]])])
        assert [word.decode() for word in result.as_numpy("label")] == ["écluse", "crane", "quay wall"]


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
        for method in ("ModelMetadata", "ModelReady", "RepositoryIndex", "RepositoryModelLoad", "ServerLive"):
            with pytest.raises(grpc.RpcError, match=f"the request is no {method}Request") as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
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
    with pytest.raises(InferenceServerException, match="no parameter is taken"):
        client.load_model("same", config="{}")
    assert not client.is_model_ready("same")
    client.load_model("same")
    assert client.is_model_ready("same")


def test_what_is_not_served_is_refused_and_not_passed_over(client):
    asked, there = triton.InferRequestedOutput("y", class_count=3), triton.InferRequestedOutput("y")
    there.set_shared_memory("region", 24)
    for output, says in ((asked, "classification is not served"), (there, "shared_memory_region is not served")):
        with pytest.raises(InferenceServerException, match=says) as caught:
            client.infer("whole", [given("x", x())], outputs=[output])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    elsewhere = triton.InferInput("x", [2, 4], "FP32")
    elsewhere.set_shared_memory("region", 32)
    with pytest.raises(InferenceServerException, match="input 'x': shared_memory_region is not served"):
        client.infer("whole", [elsewhere])


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


def here(graphs, talk, guard=None):
    """Runs `talk(channel, listener, request)` against a service with a model of 30 ms in this process."""

    async def run():
        slow = Endpoint("slow", (Function("whole", "model", str(graphs["whole"]), padded_s=0.03),))
        quick = Endpoint("quick", (Function("whole", "model", str(graphs["whole"])),))
        running = Service(SiteProcess("mast", "127.0.0.1", 0, 1, (slow, quick)))
        listener = await oip_grpc.listen(running, "127.0.0.1", 0, guard=guard)

        def request(model):
            made = classes()["ModelInferRequest"](model_name=model, raw_input_contents=[x(1.0, 1).tobytes()])
            made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
            return made.SerializeToString()

        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            found = await talk(channel, listener, request)
        begun_s = time.monotonic()
        await listener.drain(5)
        assert time.monotonic() - begun_s < 4, "nothing was under way"
        counted = [running.endpoint(name).table.counted(slot) for slot, name in enumerate(("slow", "quick"))]
        running.close()
        return found, counted

    return asyncio.run(run())


def test_clients_that_go_away_leave_nothing_behind(graphs):
    """Calls cancelled or out of time at random moments: unread, waiting, being answered."""

    async def talk(channel, listener, request):
        infer, rng, calls = channel.unary_unary(f"/{SERVICE}/ModelInfer"), random.Random(0), []
        for k in range(60):
            timeout = rng.choice((None, 1e-4, 0.01, 0.2))
            calls.append(infer(request("slow" if k % 4 == 0 else "quick"), timeout=timeout))
            if rng.random() < 0.5:
                asyncio.get_running_loop().call_later(rng.random() * 0.05, calls[-1].cancel)
            if k % 10 == 0:
                await asyncio.sleep(0.01)
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await stream.write(request("slow"))
        stream.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        for _ in range(200):
            if not listener.under_way:
                break
            await asyncio.sleep(0.02)
        assert listener.under_way == 0
        assert {type(one) for one in ended} <= {bytes, grpc.aio.AioRpcError, asyncio.CancelledError}
        return await infer(request("quick"))

    last, (slow, _) = here(graphs, talk)
    assert classes()["ModelInferResponse"].FromString(last).model_name == "quick"
    assert slow.answered < 15, "a call that nobody waits for is not computed"


def test_requests_under_way_are_counted_and_a_deadline_is_kept(graphs, tmp_path):
    key = new_key(tmp_path / "keys.json", "a", concurrency=2)
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))

    async def talk(channel, listener, request):
        infer, sent = channel.unary_unary(f"/{SERVICE}/ModelInfer"), (("authorization", f"Bearer {key}"),)
        calls = [infer(request("slow"), metadata=sent) for _ in range(4)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        codes = sorted(one.code().name if isinstance(one, grpc.aio.AioRpcError) else "OK" for one in ended)
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
        assert "may have 2 requests under way" in next(str(one) for one in ended if not isinstance(one, bytes))
        calls = [infer(request("slow"), metadata=sent), infer(request("slow"), metadata=sent, timeout=0.02)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls[1]
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await calls[0]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    _, (slow, _) = here(graphs, talk, guard)
    assert slow.answered == 3


def test_who_has_no_key_takes_nobodys_place(graphs, tmp_path):
    """Refused before a message has come; a stream that says nothing is under way for nobody either."""
    sent = (("authorization", f"Bearer {new_key(tmp_path / 'keys.json', 'a')}"),)
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))

    async def talk(channel, listener, request):
        listener.most = 2
        for path in ("ModelInfer", "ModelStreamInfer", "ServerMetadata"):
            unsaid = [channel.stream_stream(f"/{SERVICE}/{path}")() for _ in range(4)]
            for one in unsaid:
                assert await one.code() is grpc.StatusCode.UNAUTHENTICATED
        silent = [channel.stream_unary(f"/{SERVICE}/ServerLive")() for _ in range(4)]
        streams = [channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(metadata=sent) for _ in range(4)]
        for stream in streams:
            await stream.write(request("quick"))
            assert b"quick" in await stream.read()
        assert b"quick" in await channel.unary_unary(f"/{SERVICE}/ModelInfer")(request("quick"), metadata=sent)
        calls = [channel.unary_unary(f"/{SERVICE}/ModelInfer")(request("slow"), metadata=sent) for _ in range(4)]
        ended = sorted([(await one.code()).name for one in calls])
        for one in (*silent, *streams):
            one.cancel()
        return ended

    assert here(graphs, talk, guard)[0] == ["OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]


def test_a_call_that_says_nothing_is_ended(graphs, monkeypatch):
    monkeypatch.setattr(_calls, "SILENT_S", 1.0)
    monkeypatch.setattr(_calls, "SWEEP_S", 0.05)

    async def talk(channel, listener, request):
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await stream.write(request("quick"))
        assert b"quick" in await stream.read()
        for one in (channel.stream_unary(f"/{SERVICE}/ModelInfer")(), stream):
            assert await one.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no message came for 1 s" in await one.details()
        return await channel.unary_unary(f"/{SERVICE}/ModelInfer")(request("quick"))

    assert b"quick" in here(graphs, talk)[0]


def test_a_rate_does_not_depend_on_how_long_a_request_was_arriving(tmp_path):
    """A large request begins to arrive before a small one that is counted first; both are within the rate."""
    headers = {"authorization": f"Bearer {new_key(tmp_path / 'keys.json', 'a', rate_hz=1e6)}"}
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))

    async def run():
        service = Service(SiteProcess("mast", "127.0.0.1", 0, 1, ()))
        methods, answers = oip_grpc._Methods(service, guard, asyncio.get_running_loop()), []
        for ago_s in (0, 2):
            call = SimpleNamespace(metadata=headers, method="ServerMetadata", arrived_s=time.monotonic() - ago_s)
            methods.arrived(call)
            assert call.admitted.tenant.name == "a"  # for who is told of the call
            answers.append(methods.answer(call.method)(call, b""))
        service.close()
        return answers

    small, large = asyncio.run(run())
    assert small == large


def test_a_stream_of_a_slow_model_answers_in_order(graphs):
    async def talk(channel, listener, request):
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for model in ("slow", "quick", "nothing", "slow"):
            await stream.write(request(model))
        await stream.done_writing()
        return [classes()["ModelStreamInferResponse"].FromString(one) async for one in stream]

    got, _ = here(graphs, talk)
    assert [one.infer_response.model_name for one in got] == ["slow", "quick", "", "slow"]
    assert "no model 'nothing'" in got[2].error_message


def test_a_request_of_a_stream_counts_its_time_from_its_own_arrival(graphs):
    """A stream lives long; a request late in it has neither waited since its beginning nor passed a deadline."""

    async def talk(channel, listener, request):
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await stream.write(request("slow"))
        await stream.read()
        await asyncio.sleep(0.3)
        for model in ("slow", "quick"):
            await stream.write(request(model))
            await stream.read()
        await stream.done_writing()

    _, (slow, quick) = here(graphs, talk)
    assert (slow.answered, quick.answered) == (2, 1)
    assert slow.queue_s + quick.queue_s < 0.3


def test_the_time_that_a_request_is_on_its_way_is_not_the_queues(graphs):
    async def talk(channel, listener, request):
        call = channel.stream_unary(f"/{SERVICE}/ModelInfer")()  # the message comes later than the call
        await call.wait_for_connection()
        await asyncio.sleep(0.3)
        await call.write(request("quick"))
        await call.done_writing()
        await call

    _, (_, quick) = here(graphs, talk)
    assert quick.answered == 1
    assert quick.queue_s < 0.3


def test_calls_are_logged_with_what_names_them(graphs, tmp_path):
    words = [str(graphs["whole"]), "--port", "0", "--grpc-port", "0", "--access-log"]
    command, parent = [sys.executable, "-m", "airserve.cli", "serve", *words], f"00-{'1' * 32}-{'2' * 16}-01"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        where = re.search(r"grpc://(\S+)", process.stdout.readline())[1]
        with grpc.insecure_channel(where) as channel:
            sent = (("x-request-id", "seven"), ("traceparent", parent))
            live = channel.unary_unary(f"/{SERVICE}/ServerLive").with_call(b"", metadata=sent)[1]
            assert dict(live.initial_metadata())["x-request-id"] == "seven"
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"\x0a\x01z")
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([b"\x0a\x01z"]), metadata=sent)
            assert dict(stream.initial_metadata())["x-request-id"] == "seven"
            assert list(stream)
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.communicate(timeout=15)[1].splitlines()]
    one, other, streamed = (line for line in lines if line["message"] == "request")
    assert (streamed["path"], streamed["status"]) == (f"/{SERVICE}/ModelStreamInfer", "NOT_FOUND")
    assert (one["path"], one["status"], one["request_id"]) == (f"/{SERVICE}/ServerLive", "OK", "seven")
    assert one["traceparent"] == parent
    assert (other["path"], other["status"]) == (f"/{SERVICE}/ModelInfer", "NOT_FOUND")
