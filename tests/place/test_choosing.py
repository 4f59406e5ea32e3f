"""Which engine is chosen: the rules, and that it is measured once for a graph, a machine and its engines."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.contract import to_plain
from airserve.model import Runtime
from airserve.place import choosing
from airserve.place.choosing import Timed, choose, chosen, decided
from airserve.registry import Registry
from airserve.samples import Samples

ORT, OV, BF16 = choosing.RUNTIMES
ORT2, ORT4, OV2 = Runtime(threads=2), Runtime(threads=4), Runtime("openvino", threads=2)


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


@pytest.mark.parametrize(
    ("seconds", "chosen_from"),
    [
        ({ORT: 10, ORT2: 7}, {ORT: 1, ORT2: 2}),
        ({ORT: 10, ORT2: 8}, {ORT: 1}),  # a second thread is worth a quarter
        ({ORT: 10, ORT2: 7, ORT4: 6}, {ORT: 1, ORT2: 2}),
        ({ORT: 10, ORT2: 8, ORT4: 5}, {ORT: 1, ORT4: 4}),
        ({ORT: 10, OV: 6, ORT2: 5, OV2: 5}, {OV: 1}),  # as quick on two threads as the best on one, nearly
        ({ORT: 10, OV: 6, ORT2: 4, OV2: 3.9}, {OV: 1, ORT2: 2}),  # among equals onnxruntime
        ({ORT: 10, OV: 6, ORT2: 4, OV2: 3}, {OV: 1, OV2: 2}),
    ],
)
def test_how_many_threads_are_chosen_for_how_many_cores(seconds, chosen_from):
    found = decided([Timed(runtime, taken, 0.0, None) for runtime, taken in seconds.items()])
    assert {one.runtime: one.chosen for one in found if one.chosen} == chosen_from


def test_threads_with_another_answer_are_not_chosen():
    found = decided([Timed(ORT, 10, 0.0, None), Timed(ORT2, 5, 1e-3, None)])
    assert [one.chosen for one in found] == [1, 0]


def test_a_model_of_a_millisecond_is_timed_on_more_threads_and_opened_as_its_worker_has_cores(registered, monkeypatch):
    registry, model = registered
    monkeypatch.setattr(choosing, "engine_version", lambda engine: "1" if engine == "onnxruntime" else "")
    monkeypatch.setattr(choosing, "cores", lambda: 4)
    monkeypatch.setattr(choosing, "THREADS_FROM_S", 0.0)
    found = choose(model, model, lambda: None, registry=registry)
    assert [one.runtime for one in found] == [ORT, ORT2, ORT4]
    assert all(one.error <= 1e-6 and one.seconds > 0 for one in found)
    assert found[0].chosen == 1
    kept = [replace(one, chosen=k) for one, k in zip(found, (1, 0, 4), strict=True)]
    registry.keep(choosing._key(model), to_plain(kept))
    assert [chosen(model, registry, cores) for cores in (1, 2, 3, 4, 8)] == [ORT, ORT, ORT, ORT4, ORT4]


def test_where_there_is_one_engine_there_is_nothing_to_choose(registered, monkeypatch):
    registry, model = registered
    monkeypatch.setattr(choosing, "engine_version", lambda engine: "1" if engine == "onnxruntime" else "")
    assert choose(model, model, lambda: None, registry=registry) == ()
    assert chosen(model, registry) == Runtime()
