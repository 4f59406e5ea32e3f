"""Which engine is chosen: the rules, and that it is measured once for a graph, a machine and its engines."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Runtime, Samples
from airserve.place import choosing
from airserve.place.choosing import Timed, choose, chosen
from airserve.registry import Registry

ORT, OV, BF16 = choosing.RUNTIMES


@pytest.mark.parametrize(
    ("runtime", "seconds", "error", "drop", "may"),
    [
        (OV, 0.89, 0.0, None, True),
        (OV, 0.91, 0.0, None, False),  # not worth another engine
        (OV, 0.5, 2e-4, None, False),  # another answer
        (BF16, 0.5, 1e-2, 0.0, True),
        (BF16, 0.5, 1e-2, 0.006, False),  # it costs too much of the score
        (BF16, 0.5, 1e-2, None, False),  # nobody knows what it costs
        (BF16, 0.8, 1e-2, 0.0, False),
    ],
)
def test_what_may_be_chosen(runtime, seconds, error, drop, may):
    reference = Timed(ORT, 1.0, 0.0, 0.0)
    assert choosing._may(Timed(runtime, seconds, error, drop), reference) == may
    assert choosing._may(reference, reference)


@pytest.fixture
def registered(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3)).astype("f4")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    raw = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    x = rng.normal(size=(20, 4)).astype("f4")
    registry = Registry(tmp_path / "home")
    return registry, registry.register("line", raw, samples=Samples(x, (x @ weights).argmax(axis=1)))


def test_engines_are_timed_once_and_the_choice_is_recorded(registered, monkeypatch):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    registry, model = registered
    assert chosen(model, registry) == Runtime()
    samples = Samples(np.load(model.samples_path)["inputs"], np.load(model.samples_path)["labels"])
    found = choose(model, model, lambda: samples, registry=registry)
    assert [one.runtime for one in found] == list(choosing.RUNTIMES)
    assert [one.chosen for one in found].count(True) == 1
    assert found[0].error == 0.0
    assert found[1].error < 1e-5
    assert found[2].error < 0.05  # bfloat16 has eight bits, where the processor has it
    assert chosen(model, registry) == next(one.runtime for one in found if one.chosen)
    monkeypatch.setattr(choosing, "_measure", lambda *_: pytest.fail("measured again"))
    assert choose(model, model, lambda: samples, registry=registry) == found
    monkeypatch.setattr(choosing, "machine", lambda: "another")
    assert chosen(model, registry) == Runtime()


def test_where_there_is_one_engine_there_is_nothing_to_choose(registered, monkeypatch):
    registry, model = registered
    monkeypatch.setattr(choosing, "engine_version", lambda engine: "1" if engine == "onnxruntime" else "")
    assert choose(model, model, lambda: None, registry=registry) == ()
    assert chosen(model, registry) == Runtime()
