"""A gateway's calls over gRPC, before sites that die, have no room, or are late; and what it passes on, to the byte."""

import asyncio
import gc
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.contract import Endpoint, Route, SiteProcess
from airserve.model import Engine, Function
from airserve.serve.calling import Asking
from airserve.serve.configuration import Configuration
from airserve.serve.guarding import Guard
from airserve.serve.protocols import oip_grpc
from airserve.serve.protocols._entry import NotFound
from airserve.serve.protocols._messages import SERVICE, classes
from airserve.serve.relaying import Gateway
from airserve.serve.relaying_calls import renamed
from airserve.serve.routes import Routes, RoutesError, read
from airserve.serve.service import Service
from airserve.serve.tenants import new_key
from airserve.tensors import WireError

M = classes()
X = np.random.default_rng(0).normal(size=(1, 4)).astype("float32")


def request(model, x=X, **fields):
    made = M["ModelInferRequest"](model_name=model, raw_input_contents=[x.tobytes()], **fields)
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return made.SerializeToString()


@settings(max_examples=50, deadline=None)
@given(
    st.text(max_size=200), st.text(max_size=200), st.text(min_size=1, max_size=200), st.binary(max_size=300), st.data()
)
def test_a_message_is_the_same_but_for_the_model(first, model, other, raw, data):
    """Named twice, the last counts; a message cut short is refused or is another message, as protobuf reads it."""
    made = M["ModelInferRequest"](model_name=model, model_version="7", id="é", raw_input_contents=[raw, b""])
    made.parameters["k"].int64_param = -1
    whole = M["ModelInferRequest"](model_name=first).SerializeToString() + made.SerializeToString()
    found, passed = renamed(whole, "")
    assert (found, passed) == (model or first, whole)
    made.model_name = other
    assert M["ModelInferRequest"].FromString(renamed(whole, other)[1]) == made
    cut = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=4))
    try:
        expected = M["ModelInferRequest"].FromString(cut).model_name
    except Exception:
        return
    try:
        assert renamed(cut, "")[0] == expected
    except WireError:
        assert cut[-4:] != whole[-4:]  # groups, which protobuf skips and nobody sends


def through(talk, graphs, made=lambda a, b: {"*": (a, b)}, guards=(None, None), slow_s=0.05):
    """Runs `talk(call, sites, gateway)` with a gateway before two sites that have a quick and a slow model."""

    async def run():
        whole = str(graphs["whole"])
        slow = Endpoint("slow", (Function("whole", "model", whole, padded_s=slow_s),))
        quick = Endpoint("quick", (Function("whole", "model", whole),))
        services = [Service(SiteProcess(name, "127.0.0.1", 0, 1, (slow, quick))) for name in "ab"]
        sites = [
            await oip_grpc.listen(service, "127.0.0.1", 0, guard=guard)
            for service, guard in zip(services, guards, strict=True)
        ]
        places = [Route("127.0.0.1", site.port, "") for site in sites]
        gateway = Gateway(Routes({}, calls=made(*places)))
        listener = gateway.calls.listen("127.0.0.1", 0, None)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:

            async def call(method, message, **how):
                return await channel.unary_unary(f"/{SERVICE}/{method}")(message, **how)

            call.channel = channel
            found = await talk(call, list(zip(services, sites, strict=True)), gateway)
        await listener.drain(5)
        gateway.close()
        for site in sites:
            await site.drain(5)
        for service in services:
            service.close()
        return found

    return uvloop.run(run())


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


def test_calls_are_answered_while_a_site_ends_and_another_has_no_room(graphs):
    expected = Engine(graphs["whole"]).run([X])[0]

    async def talk(call, sites, gateway):
        async def asked(count, model="quick"):
            answers = await asyncio.gather(*(call("ModelInfer", request(model, id=str(k))) for k in range(count)))
            for k, raw in enumerate(answers):
                answer = M["ModelInferResponse"].FromString(raw)
                assert (answer.id, answer.model_name) == (str(k), model)
                found = np.frombuffer(answer.raw_output_contents[0], "f4").reshape(1, 3)
                np.testing.assert_allclose(found, expected, rtol=1e-5)

        await asked(30)
        one, other = (service.endpoint("quick").counts.answered for service, _ in sites)
        assert one + other == 30
        assert min(one, other) > 0
        told = gateway.status()["models"][0]
        assert (told["protocol"], told["requests"], told["ejections"]) == ("grpc", 30, 0)
        sites[0][0].workers.limit = 0
        await asyncio.gather(asked(6, "slow"), asked(6, "slow"))
        assert [site["state"] for site in gateway.status()["models"][0]["sites"]] == ["in", "in"]
        sites[0][0].workers.limit = 100
        await asyncio.gather(asked(10, "slow"), sites[0][1].drain(0.0))  # cut off with calls under way
        await asked(20)
        return gateway.status()["models"][0]

    told = through(talk, graphs)
    assert told["ejections"] >= 1
    assert [site["state"] for site in told["sites"]] == ["out", "in"]
    assert told["retries"] >= 1


def test_what_is_said_goes_through(graphs, tmp_path):
    key = new_key(tmp_path / "keys.json", "plant")
    guard = Guard(Configuration((), keys=str(tmp_path / "keys.json")))
    sent = {"metadata": (("authorization", f"Bearer {key}"), ("x-request-id", "seven"))}

    async def talk(call, sites, gateway):
        assert M["ServerLiveResponse"].FromString(await call("ServerLive", b"")).live
        async with asyncio.timeout(10):  # its sites are asked first
            while not M["ServerReadyResponse"].FromString(await call("ServerReady", b"")).ready:
                await asyncio.sleep(0.01)
        assert M["ServerMetadataResponse"].FromString(await call("ServerMetadata", b"")).name == "airserve-gateway"
        code, said = await refused(call("ModelInfer", request("quick")))
        assert (code, "no key was sent" in said) == ("UNAUTHENTICATED", True)
        one = call.channel.unary_unary(f"/{SERVICE}/ModelInfer")(request("canary"), **sent)
        assert M["ModelInferResponse"].FromString(await one).model_name == "quick"
        assert dict(await one.initial_metadata())["x-request-id"] == "seven"
        described = await call("ModelMetadata", M["ModelMetadataRequest"](name="canary").SerializeToString(), **sent)
        assert M["ModelMetadataResponse"].FromString(described).name == "quick"
        code, said = await refused(call("ModelInfer", request("quick", np.zeros((1, 5), "f4")), **sent))
        assert (code, "expected float32 [-1, 4]" in said) == ("INVALID_ARGUMENT", True)
        assert (await refused(call("ModelInfer", b"\xff\xff", **sent)))[0] == "INVALID_ARGUMENT"
        code, said = await refused(call("ModelInfer", request("other"), **sent))
        assert (code, said) == (
            "NOT_FOUND",
            "there is no route to a model 'other'; there are routes to quick, slow, canary.",
        )
        begun_s = time.monotonic()
        assert (await refused(call("ModelInfer", request("slow"), timeout=0.1, **sent)))[0] == "DEADLINE_EXCEEDED"
        assert time.monotonic() - begun_s < 5
        sites[0][0].deadline_s = 0.1  # a site's own, for calls that name none
        ended = await asyncio.gather(
            *(call("ModelInfer", request("slow"), **sent) for _ in range(2)), return_exceptions=True
        )
        assert {one.code().name for one in ended if not isinstance(one, bytes)} == {"DEADLINE_EXCEEDED"}
        sites[0][0].deadline_s = 30.0
        assert (await refused(call("RepositoryModelLoad", b"", **sent)))[0] == "UNIMPLEMENTED"
        stream = call.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(**sent)
        for model in ("quick", "other", "canary"):
            await stream.write(request(model, id=model))
        await stream.done_writing()
        got = [M["ModelStreamInferResponse"].FromString(one) async for one in stream]
        assert [one.infer_response.id for one in got] == ["quick", "", "canary"]
        assert "no route to a model 'other'" in got[1].error_message
        assert await gateway.calls.without_keys() is not None
        return [service.endpoint("quick").counts.answered for service, _ in sites]

    def made(a, b):
        canary = Route("127.0.0.1", a.port, "quick")
        return {"quick": (a,), "slow": (a,), "canary": (canary, Route("127.0.0.1", b.port, "quick", mirror=True))}

    answered, mirrored = through(talk, graphs, made, (guard, None), slow_s=0.5)
    assert answered == 3
    assert mirrored > 0


def test_what_a_site_says_counts_as_its_answer_and_a_mirrors_is_heard_by_nobody(graphs):
    unheard = []

    async def talk(call, sites, gateway):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
        for _ in range(5):
            assert (await refused(call("ModelInfer", request("quick", np.zeros((1, 5), "f4")))))[
                0
            ] == "INVALID_ARGUMENT"
        async with asyncio.timeout(10):
            while gateway.status()["models"][0]["mirrored"] < 5:
                await asyncio.sleep(0.001)
        gc.collect()
        return gateway.status()["models"][0]

    def made(a, b):
        return {"quick": (a, Route("127.0.0.1", b.port, "quick", mirror=True))}

    told = through(talk, graphs, made)
    assert [(site["answered"], site["failed"]) for site in told["sites"]] == [(5, 0), (5, 0)]
    assert not unheard


def test_a_gateway_whose_site_is_dead_is_not_ready_and_does_not_say_where_it_was(graphs):
    async def talk(call, sites, gateway):
        balancer = gateway.calls.balancers["quick"]
        async with asyncio.timeout(10):
            while not balancer.out:
                assert not M["ServerReadyResponse"].FromString(await call("ServerReady", b"")).ready
                await asyncio.sleep(0.001)
        with pytest.raises(ConnectionError) as caught:
            await balancer._places[0].asked.exchange(Asking(f"/{SERVICE}/ServerReady", b""), time.monotonic() + 10)
        return str(caught.value)

    assert "127.0.0.1" not in through(talk, graphs, lambda a, b: {"quick": (replace(a, port=9),)})


def test_a_gateway_for_all_tells_no_names_to_whoever_calls():
    async def talk():
        calls = {"secret": (Route("127.0.0.1", 9, ""),)}
        gateway = Gateway(Routes({}, calls=calls, sites_check_keys=True))
        with pytest.raises(NotFound, match="no route to a model 'other'") as caught:
            await gateway.calls._relay(None, f"/{SERVICE}/ModelInfer", request("other"))
        gateway.close()
        await asyncio.sleep(0)
        return str(caught.value)

    assert "secret" not in uvloop.run(talk())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("routes: {m: [{url: http://h:1, grpc: 2}]}", "say where the gateway listens for gRPC: `listen_grpc"),
        ("routes: {m: [http://h:1]}\nlisten_grpc: 127.0.0.1:8081", "one site at least is to answer over gRPC"),
        ("routes: {m: [{url: http://h:1, grpc: h:2}]}\nlisten_grpc: 127.0.0.1:1", "grpc is 'h:2'; the site's port"),
        ("routes: {m: [{url: http://h:1, grpc: 2}]}\nlisten_grpc: 0.0.0.0:1", "0.0.0.0 can be reached from outside"),
        ("routes: {m: [{url: http://h:1, grpc: 2}]}\nlisten_grpc: 8081", "'8081' is no address"),
    ],
)
def test_routes_that_cannot_be_are_one_sentence(tmp_path, text, says):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(RoutesError, match=r"^[^\n]*$") as caught:
        read(tmp_path / "g.yaml")
    assert says in str(caught.value)


def test_ports_of_grpc_stand_beside_those_of_http(tmp_path):
    (tmp_path / "g.yaml").write_text(
        "listen_grpc: 127.0.0.1:8081\nroutes:\n  m: [{url: 'https://a:1', grpc: 2, model: n}, {url: 'http://b:3'}]\n"
    )
    found = read(tmp_path / "g.yaml")
    assert found.grpc == ("127.0.0.1", 8081)
    assert [(r.host, r.port, r.model) for r in found.calls["m"]] == [("a", 2, "n")]
    assert [(r.host, r.port) for r in found.routes["m"]] == [("a", 1), ("b", 3)]
    assert found.secure == {("a", 1), ("a", 2)}
