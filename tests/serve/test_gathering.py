"""Requests that are computed together: each has the answer that it has alone, and one that fails fails alone."""

import asyncio
import json
import time

import numpy as np
import onnx
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from airserve import wire
from airserve.contract import Endpoint, SiteProcess
from airserve.model import Engine, Function, Tensor
from airserve.serve import warming
from airserve.serve.connecting import AnswerReader
from airserve.serve.gathering import Unread
from airserve.serve.metering import Table
from airserve.serve.protocols import oip
from airserve.serve.served import EngineFailed, Served
from airserve.serve.service import Service

X = Tensor("x", "float32", (-1, 4))


class Asker:
    """Keeps what it is told."""

    def __init__(self):
        self.told = {}

    def inputs(self, given):
        if any(x is None for x in given):
            raise Unread
        return [np.concatenate(given)]

    def unread(self, waiting, given, arrived_s):
        self.told[waiting] = "unread"

    def answered(self, waiting, outputs, queue_s, compute_s):
        self.told[waiting] = outputs

    def answered_alike(self, waiting, outputs, queues_s, compute_s):
        rows = len(outputs[0]) // len(waiting)
        for k, one in enumerate(waiting):
            self.answered(one, [output[k * rows : (k + 1) * rows] for output in outputs], queues_s[k], compute_s)

    def failed(self, waiting, error):
        self.told[waiting] = error


def service_of(graphs, name="whole"):
    return Service(SiteProcess("mast", "h", 0, 1, (Endpoint(name, (Function(name, "model", str(graphs[name])),)),)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12), st.integers(2, 9))
def test_each_has_the_answer_that_it_has_alone(graphs, sizes, limit):
    async def run():
        service = service_of(graphs)
        (served,) = service.served
        served.batch(limit, 0.0)
        gatherer, askers = service.gatherer(served), [Asker() for _ in range(3)]
        runs, work = [], served.work
        served.work = lambda ordered: runs.append(len(ordered[0])) or work(ordered)
        rng, asked = np.random.default_rng(0), []
        for k, (rows, who) in enumerate(sizes):
            asked.append((who, k, rng.normal(size=(rows, 4)).astype("float32")))
            gatherer.add(askers[who], k, asked[-1][2], rows, time.monotonic())
        await asyncio.sleep(0)
        for who, k, x in asked:
            (y,) = askers[who].told[k]
            np.testing.assert_allclose(y, work([x])[0], rtol=1e-4, atol=1e-5)
        counted = served.table.counted(0)
        assert (counted.answered, counted.rows) == (len(sizes), sum(rows for rows, _ in sizes))
        assert counted.runs == len(runs) <= len(sizes)
        assert sum(counted.buckets) == len(sizes)
        assert all(rows <= max(limit, max(size for size, _ in sizes)) for rows in runs)
        service.close()

    uvloop.run(run())


def test_one_that_fails_fails_alone(graphs):
    async def run():
        service = service_of(graphs)
        (served,) = service.served
        work = served.work

        def picky(ordered):
            if (ordered[0] < 0).any():
                raise RuntimeError("no")
            return work(ordered)

        served.work, asker = picky, Asker()
        for k in range(5):
            x = np.full((1, 4), -1.0 if k == 2 else 1.0, "float32")
            service.gatherer(served).add(asker, k, None if k == 4 else x, 1, time.monotonic())
        await asyncio.sleep(0)
        assert isinstance(asker.told[2], EngineFailed)
        assert [len(asker.told[k]) for k in (0, 1, 3)] == [1, 1, 1]
        assert asker.told[4] == "unread"  # which is its asker's to tell, and not counted here
        assert served.table.counted(0).failures["failed"] == 1
        service.close()

    uvloop.run(run())


def test_outputs_of_which_nobody_knows_whose_they_are_are_computed_again(graphs):
    """A graph may drop rows by what they hold (NonZero, Compress), which its first runs need not show."""

    async def run():
        service = service_of(graphs)
        (served,) = service.served
        work = served.work
        served.work = lambda ordered: [output[:1] for output in work(ordered)]
        asker, xs = Asker(), [np.full((1, 4), float(k), "float32") for k in range(3)]
        for k, x in enumerate(xs):
            service.gatherer(served).add(asker, k, x, 1, time.monotonic())
        await asyncio.sleep(0)
        for k, x in enumerate(xs):
            np.testing.assert_allclose(asker.told[k][0], work([x])[0], rtol=1e-5)
        assert served.table.counted(0).runs == 3
        service.close()

    uvloop.run(run())


def test_a_wait_that_was_asked_for_ends_with_a_full_batch_or_its_time(graphs):
    async def run():
        service = service_of(graphs)
        (served,) = service.served
        served.batch(3, 0.02)
        asker, gatherer, x = Asker(), service.gatherer(served), np.ones((1, 4), "float32")
        for k in range(2):
            gatherer.add(asker, k, x, 1, time.monotonic())
        await asyncio.sleep(0)
        assert not asker.told
        gatherer.add(asker, 2, x, 1, time.monotonic())
        await asyncio.sleep(0)
        assert len(asker.told) == 3
        gatherer.add(asker, 3, x, 1, time.monotonic())
        while len(asker.told) < 4:
            await asyncio.sleep(0.005)
        assert served.table.counted(0).runs == 2
        service.close()

    uvloop.run(run())


def net(folder, name, nodes, weights):
    x, y = (helper.make_tensor_value_info(of, TensorProto.FLOAT, ["n", 64]) for of in "xy")
    graph = helper.make_graph(nodes, name, [x], [y], [numpy_helper.from_array(w, of) for of, w in weights.items()])
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_model_whose_rows_lean_on_each_other_is_never_computed_together(tmp_path, graphs):
    """A quantisation, a normalisation or a softmax over the batch; each looks harmless in the signature."""
    mean = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    quantised = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    softmax = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    fixed = [helper.make_node("Reshape", ["x", "one"], ["y"])]  # free by name alone
    weights = {"one": np.array([1, 64], "int64")}
    for name, nodes, held in (
        ("mean", mean, {}), ("quantised", quantised, {}), ("softmax", softmax, {}), ("fixed", fixed, weights),
    ):  # fmt: skip
        engine = Engine(net(tmp_path, name, nodes, held))
        assert warming.batch_of(engine.signature.inputs, engine.signature.outputs, engine.run) == (False, 1), name
    plain = Engine(net(tmp_path, "plain", [helper.make_node("Relu", ["x"], ["y"])], {}))
    assert warming.batch_of(plain.signature.inputs, plain.signature.outputs, plain.run)[0]
    assert not Served(Endpoint("mean", (Function("mean", "model", str(graphs["mean"])),))).max_batch > 32


def test_batching_is_where_the_first_runs_say_that_it_pays(monkeypatch):
    tensors, now_s = (Tensor("x", "float32", (-1, 2)),), [0.0]
    monkeypatch.setattr(warming.time, "perf_counter", lambda: now_s[0])

    def most(fixed_s, row_s):
        def run(inputs):
            now_s[0] += fixed_s + row_s * len(inputs[0])
            return [inputs[0] + 1]

        return warming.batch_of(tensors, tensors, run)

    assert most(2e-4, 1e-6) == (True, 32)
    assert most(1.9e-4, 1e-4) == (True, 8)  # 190 + 8 x 100 us: as long as one turn of the loop may last
    assert most(1e-6, 2e-4) == (True, 1)


@pytest.mark.parametrize("form", ["binary", "json"])
def test_connections_that_ask_together_are_answered_each_with_its_own(graphs, form):
    """Through the whole server: different rows, ids of its own, lengths that differ, and one after another."""

    async def run():
        service = service_of(graphs)
        (served,) = service.served
        served.batch(4, 0.0)
        listener = await oip.listen(service, "127.0.0.1", 0)
        engine, rng = Engine(graphs["whole"]), np.random.default_rng(0)

        async def client(number):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            read = AnswerReader()
            for k in range(12):
                many = 1 + 3 * (k % 4 == 3)
                rows = [rng.normal(size=(1, 4)).astype("float32") for _ in range(many)]
                extra = f"X-Request-Id: {number}\r\n" if number % 2 else ""
                if form == "binary":
                    sent = [wire.infer_request("whole", [(X, x)], host="h", extra=extra) for x in rows]
                else:
                    sent = [json_request(x, extra) for x in rows]
                writer.write(b"".join(sent))
                got = []
                while len(got) < many:
                    got += read.feed(await reader.read(1 << 16))
                for answer, x in zip(got, rows, strict=True):
                    assert answer.status == 200
                    assert answer.headers.get("x-request-id") == (str(number) if extra else None)
                    length = answer.headers.get("inference-header-content-length")
                    found = wire.parse_response(answer.body, int(length) if length else None)
                    np.testing.assert_allclose(found.outputs[0][1], engine.run([x])[0], rtol=1e-4, atol=1e-5)
            writer.close()

        await asyncio.gather(*(client(number) for number in range(6)))
        counted = served.table.counted(0)
        assert counted.answered == counted.rows == 6 * (9 + 3 * 4)
        assert counted.runs < counted.answered
        await listener.drain(2)
        service.close()

    uvloop.run(run())


def json_request(x, extra):
    """With all digits, so that lengths differ from one to the next."""
    data = str(x.ravel().astype(float).tolist())
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":{data}}}]}}'.encode()
    return (
        f"POST /v2/models/whole/infer HTTP/1.1\r\nHost: h\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )


def test_batching_is_set_while_it_runs_in_all_workers(graphs):
    """Two workers of one table; what one is told both do."""

    async def run():
        table, of = Table(workers=2), Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),))
        mean = Endpoint("mean", (Function("mean", "model", str(graphs["mean"]), padded_s=0.001),))
        one, two = (Service(SiteProcess("mast", "h", 0, 1, (of, mean)), table, worker) for worker in (0, 1))
        listener = await oip.listen(one, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        read = AnswerReader()

        async def ask(body, model="whole"):
            head = f"POST /v2/models/{model}/config HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while not (got := read.feed(await reader.read(1 << 16))):
                pass
            return got[0].status, json.loads(got[0].body)

        found = one.endpoint("whole").max_batch
        assert await ask(b"") == (200, {"max_batch": found, "max_wait_ms": 0.0})
        assert await ask(b'{"max_batch": 7, "max_wait_ms": 2}') == (200, {"max_batch": 7, "max_wait_ms": 2.0})
        assert await ask(b'{"max_wait_ms": 0}') == (200, {"max_batch": 7, "max_wait_ms": 0.0})
        assert (two.endpoint("whole").max_batch, two.endpoint("whole").max_wait_s) == (7, 0.0)
        assert (await ask(b'{"max_batch": 0}'))[1]["max_batch"] == found
        for bad in (b'{"max_batch": -1}', b'{"max_batch": true}', b'{"max_wait_ms": "1"}', b'{"most": 1}', b"[]"):
            status, said = await ask(bad)
            assert status == 400
            assert said["error"].endswith(".")
        assert "not computed together" in (await ask(b'{"max_batch": 2}', "mean"))[1]["error"]
        writer.close()
        await listener.drain(2)
        one.close()
        two.close()

    uvloop.run(run())
