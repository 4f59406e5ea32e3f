"""Every engine sits the same exam: the answers of onnxruntime, whatever the batch, the thread and the precision."""

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Engine, Function, ModelError, Runtime, open_engine, open_function

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

RUNTIMES = [
    Runtime(),
    Runtime(threads=2),
    Runtime("openvino"),
    Runtime("openvino", threads=2),
    Runtime("openvino", "bf16"),
]


def saved(path, nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Two inputs, one of them whole numbers, and two outputs in an order that is not the graph's own."""
    rng = np.random.default_rng(0)
    f32 = TensorProto.FLOAT
    return saved(
        tmp_path_factory.mktemp("engines") / "net.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gather", ["table", "k"], ["e"]),
            helper.make_node("Add", ["f", "e"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        ],
        {"x": (f32, ["n", 3, 8, 8]), "k": (TensorProto.INT64, ["n"])},
        {"best": (TensorProto.INT64, ["n"]), "y": (f32, ["n", 6])},
        {"w": rng.normal(size=(6, 3, 3, 3)).astype("f4"), "table": rng.normal(size=(5, 6)).astype("f4")},
    )


def inputs(n, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 3, 8, 8)).astype("f4"), rng.integers(0, 5, n)]


@pytest.mark.parametrize("runtime", RUNTIMES, ids=repr)
def test_answers_are_those_of_onnxruntime(net, runtime):
    reference, engine = Engine(net), open_engine(net, runtime)
    assert engine.signature == reference.signature
    tolerance = 3e-2 if runtime.precision else 1e-5
    kept = []
    for n in (1, 4, 2, 1):
        given = inputs(n, n)
        best, y = engine.run(given)
        right = reference.run(given)
        assert (best.dtype, y.dtype, y.shape) == (np.int64, np.float32, (n, 6))
        np.testing.assert_allclose(y, right[1], atol=tolerance * np.abs(right[1]).max())
        if not runtime.precision:
            np.testing.assert_array_equal(best, right[0])
        kept.append((y, y.copy()))
    for y, copy in kept:  # an answer is the caller's: later runs leave it alone
        np.testing.assert_array_equal(y, copy)


@pytest.mark.parametrize("runtime", RUNTIMES[:3:2], ids=repr)
def test_threads_may_run_one_engine_at_once(net, runtime):
    reference, engine = Engine(net), open_engine(net, runtime)
    wrong = []

    def ask(seed):
        for k in range(20):
            given = inputs(1 + k % 3, seed * 100 + k)
            if not np.allclose(engine.run(given)[1], reference.run(given)[1], atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_an_engine_does_not_take_is_one_sentence(tmp_path):
    text = saved(
        tmp_path / "text.onnx", [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.STRING, ["n"])}, {"y": (TensorProto.STRING, ["n"])}, {},
    )  # fmt: skip
    with pytest.raises(ModelError, match="x is bytes, which is not run by openvino; use onnxruntime"):
        open_engine(text, Runtime("openvino"))
    with pytest.raises(ModelError, match="cannot be opened"):
        open_engine(b"no graph", Runtime("openvino"))


def test_a_function_opens_as_it_says(net):
    signature, run = open_function(Function("net", "model", str(net), runtime=Runtime("openvino")))
    assert type(run.__self__).__name__ == "OpenVino"
    assert signature == Engine(net).signature
