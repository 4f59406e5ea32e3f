"""Cuts: head and tail are the whole; constants are not live; encodings do what ONNX says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import default_rng
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Engine, ModelError
from airserve.place.cutting import Cut, Scale, cuts, scaling, split, tapped, working_bytes

FP32 = ["/stem/act/Relu_output_0", "/block/act/Relu_output_0", "features"]


def test_cuts_of_a_residual_net(graphs: dict[str, Path]) -> None:
    found = cuts(graphs["fp32"])
    assert [cut.tensor for cut in found if not cut.shadowed] == FP32
    by_tensor = {cut.tensor: cut for cut in found}
    assert "inner" not in by_tensor  # the skip is live beside it
    assert "/block/block.1/Conv_output_0" not in by_tensor
    stem = by_tensor["/stem/act/Relu_output_0"]
    assert (stem.name, stem.shape, stem.dtype, stem.bytes) == ("stem-act-relu", (8, 8, 8), "float32", 2048)
    assert by_tensor["light"].shadowed  # larger than the input, and nothing is computed yet
    assert by_tensor["sum"].shadowed  # before its activation
    assert by_tensor["/down/act/Relu_output_0"].shadowed  # the pool behind it carries less, and has no weights
    assert by_tensor["pooled"].shadowed  # the same as the features, earlier
    assert len({cut.name for cut in found}) == len(found)
    assert [cut.nodes for cut in found] == sorted(cut.nodes for cut in found)


def test_weights_of_a_qdq_graph_are_not_live(graphs: dict[str, Path]) -> None:
    found = [cut for cut in cuts(graphs["int8"]) if not cut.shadowed]
    assert {cut.dtype for cut in found} == {"uint8"}
    assert len(found) == len(FP32)
    assert not any("_w" in cut.tensor or "_b" in cut.tensor for cut in found)


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_head_and_tail_equal_the_whole(graphs: dict[str, Path], pictures: np.ndarray, variant: str) -> None:
    whole = Engine(graphs[variant])
    for cut in cuts(graphs[variant]):
        head, tail = (Engine(half) for half in split(graphs[variant], cut))
        assert head.signature.outputs[0].name == tail.signature.inputs[0].name == cut.tensor
        for rows in (pictures[:1], pictures[:7]):  # the batch axis stays free
            middle = head.run([rows])
            assert middle[0].shape == (len(rows), *cut.shape)
            assert middle[0].nbytes == cut.bytes * len(rows)
            np.testing.assert_allclose(tail.run(middle)[0], whole.run([rows])[0], atol=2e-6 if variant == "fp32" else 0)


def test_halves_hold_no_more_constants_than_the_whole(graphs: dict[str, Path]) -> None:
    whole = onnx.load(graphs["fp32"])
    cut = next(cut for cut in cuts(whole) if cut.tensor == "/block/act/Relu_output_0")
    head, tail = (onnx.load_from_string(half) for half in split(whole, cut))
    held = [{tensor.name for tensor in half.graph.initializer} for half in (head, tail)]
    assert not held[0] & held[1]
    assert held[0] | held[1] == {tensor.name for tensor in whole.graph.initializer}


def test_a_constant_that_both_halves_use_is_in_both() -> None:
    shared = numpy_helper.from_array(np.float32([2.0, 3.0]), "shared")
    nodes = [
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32(1))),
        helper.make_node("Mul", ["x", "shared"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        helper.make_node("Mul", ["b", "shared"], ["c"]),
        helper.make_node("Add", ["c", "one"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [shared],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert [cut.tensor for cut in cuts(model)] == ["a", "b", "c"]
    for cut in cuts(model):
        head, tail = (Engine(half) for half in split(model, cut))
        x = np.float32([[1, 2], [3, 4]])
        np.testing.assert_array_equal(tail.run(head.run([x]))[0], (x * [2, 3] + 1) * [2, 3] + 1)


def test_two_inputs_are_cut_only_after_both() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "z"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "z", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:2], values[2:]), ir_version=9)
    assert [cut.tensor for cut in cuts(model)] == ["b"]


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_is_what_onnx_computes(graphs: dict[str, Path], pictures: np.ndarray, per_channel: bool) -> None:
    cut = next(cut for cut in cuts(graphs["fp32"]) if cut.tensor == "/block/act/Relu_output_0")
    values = Engine(tapped(graphs["fp32"], [cut])).run([pictures])[0]
    axes = (0, 2, 3) if per_channel else None
    scale = Scale.between(values.min(axis=axes), values.max(axis=axes))
    head, tail = (Engine(half) for half in split(graphs["fp32"], cut, "int8", scale))
    sent = head.run([pictures[:9]])[0]
    assert sent.dtype == np.uint8
    assert sent.shape == (9, *cut.shape)
    np.testing.assert_array_equal(sent, scale.encode(values[:9]))
    back = (sent.astype(np.float32) - scale.zero.reshape(-1, 1, 1)) * scale.step.reshape(-1, 1, 1)
    assert np.abs(back - values[:9]).max() <= scale.step.max() * 0.51
    plain = Engine(split(graphs["fp32"], cut)[1])
    np.testing.assert_allclose(tail.run([sent])[0], plain.run([back])[0], atol=1e-5)
    alone = [Engine(graph) for graph in scaling(cut, scale)]
    np.testing.assert_array_equal(alone[0].run([values[:9]])[0], sent)
    np.testing.assert_allclose(alone[1].run([sent])[0], back, rtol=1e-6)


def test_int8_covers_zero_and_constant_channels() -> None:
    scale = Scale.between(np.float32([0.5, -1, 0, -3]), np.float32([2, 1, 0, -2]))
    x = np.float32([[[2.0], [-1.0], [0.0], [-3.0]]])
    back = (scale.encode(x).astype(np.float32) - scale.zero[:, None]) * scale.step[:, None]
    np.testing.assert_allclose(back, x, atol=0.02)


def test_what_cannot_be_cut_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(ModelError, match=r"no\.onnx cannot be read as an ONNX graph"):
        cuts(tmp_path / "no.onnx")
    cut = next(cut for cut in cuts(graphs["int8"]) if cut.dtype == "uint8")
    with pytest.raises(ModelError, match="cannot travel as 'int8'"):
        split(graphs["int8"], cut, "int8", Scale(np.float32(1), np.uint8(0)))


def test_names_are_stable_and_readable(graphs: dict[str, Path]) -> None:
    for variant in ("fp32", "int8"):
        first, again = (([cut.name for cut in cuts(graphs[variant])]) for _ in range(2))
        assert first == again
        assert all(name.replace("-", "").isalnum() and name == name.lower() for name in first)


def test_working_bytes_by_hand(graphs: dict[str, Path]) -> None:
    block = 8 * 8 * 8 * 4  # floats of a feature map; three are live at the skip: stem, inner, and what is made
    assert working_bytes(graphs["fp32"]) == 3 * block


def test_numeric_names_get_the_operator() -> None:
    rng = default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((2, 2)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["123"]), helper.make_node("MatMul", ["123", "w"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]), ir_version=9)
    assert cuts(model) == [Cut("matmul-0", "123", (2,), "float32", 8, 1, False)]
