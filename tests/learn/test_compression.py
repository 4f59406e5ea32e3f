"""Compression: what a variant is, what it may cost, what it may see, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from airserve.errors import UserError
from airserve.learn.compression import compress
from airserve.learn.compressors import int8
from airserve.learn.exporting import OPSET
from airserve.learn.scoring import paired_ms, read
from airserve.model import Array, Engine, Model
from airserve.registry import Registry
from airserve.samples import Samples, load_samples


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_convolutions_become_static_int8(digits: Model, registry: Registry) -> None:
    """The gate on the digits: a third of the size, at most one point worse, scored on the rows that are held."""
    small = compress(digits, "int8", registry=registry, progress=False)
    assert small.reference == f"{digits.name}@{digits.version}/int8"
    assert small.lineage["parent"] == digits.reference
    assert small.path.stat().st_size < 0.4 * digits.path.stat().st_size
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators(small.path)
    assert small.signature == digits.signature
    assert digits.samples_path is not None
    held = load_samples(digits.samples_path).held()
    assert small.scores["accuracy"] == (read(Engine(small.path), held.inputs) == held.labels).mean()
    assert small.lineage["before"] == pytest.approx(digits.scores["accuracy"])
    assert small.scores["accuracy"] >= small.lineage["before"] - 0.01
    assert small.lineage["scored"] == 360
    assert set(small.lineage["cpu_ms"]) == {"fp32", "int8"}
    assert compress(digits, "int8", registry=registry, progress=False) == small
    assert registry.variants(digits) == [digits, small]


def test_a_known_variant_is_made_again_when_asked(
    digits: Model, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(digits, "int8", registry=registry, progress=False)
    made = []

    def make(path: Path, calibration: Array) -> bytes:
        made.append(path)
        return int8.compress(path, calibration)

    monkeypatch.setattr("airserve.learn.compression.compressors", {"int8": make})
    for fresh in (False, True):
        compress(digits, "int8", registry=registry, fresh=fresh, progress=False)
    assert made == [digits.path]


def test_weights_are_int8_per_channel_and_activations_uint8(digits: Model, registry: Registry) -> None:
    small = onnx.load(compress(digits, "int8", registry=registry, progress=False).path).graph
    constants = {each.name: numpy_helper.to_array(each) for each in small.initializer}
    makers = {name: node for node in small.node for name in node.output}
    convolutions = [node for node in small.node if node.op_type == "Conv"]
    assert [constants[node.input[1]].shape[1] for node in convolutions if node.input[1] in constants] == [1]  # the stem
    for node in (node for node in convolutions if node.input[1] not in constants):
        weight = makers[node.input[1]]
        values, scales = constants[weight.input[0]], constants[weight.input[1]]
        assert values.dtype == np.int8
        assert scales.shape == (values.shape[0],)
        activation = makers[node.input[0]]
        assert constants[activation.input[2]].dtype == np.uint8
    (answer,) = (node for node in small.node if node.op_type == "Gemm")
    assert constants[answer.input[1]].dtype == np.float32  # too small to gain


def test_matrices_become_dynamic_int8(perceptron: Model, registry: Registry) -> None:
    small = compress(perceptron, "int8", registry=registry, progress=False)
    assert "MatMulInteger" in operators(small.path)
    assert small.scores["accuracy"] >= perceptron.scores["accuracy"] - 0.02


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_a_graph_of_an_old_opset_becomes_int8(opset: int, tmp_path: Path) -> None:
    """Scales per channel are of opset 13."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(8, 4, 3, 3)).astype(np.float32), "w")
    sides = [onnx.helper.make_tensor_value_info(name, 1, ["n", *axes]) for name, *axes in (("x", 4, 8, 8), ("y", 8))]
    steps = zip(("Conv", "GlobalAveragePool", "Flatten"), (["x", "w"], ["c"], ["p"]), ("c", "p", "y"), strict=True)
    nodes = [onnx.helper.make_node(kind, given, [made], name=kind) for kind, given, made in steps]
    graph = onnx.helper.make_graph(nodes, "old", sides[:1], sides[1:], [weights])
    path, inputs = tmp_path / "old.onnx", rng.normal(size=(30, 4, 8, 8)).astype(np.float32)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=6), path)
    small = int8.compress(path, inputs)
    assert "DequantizeLinear" in {node.op_type for node in onnx.load_from_string(small).graph.node}
    found, wanted = (Engine(each).run([inputs])[0] for each in (small, path))
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


def test_calibration_sees_its_rows_only(digits: Model) -> None:
    """Held rows that are far out of range do not change the graph; calibration rows that are do."""
    assert digits.samples_path is not None
    rows = load_samples(digits.samples_path).inputs[:31]  # an odd number, so that no batch would fit
    graph = int8.compress(digits.path, rows)
    assert int8.compress(digits.path, rows.copy()) == graph
    assert int8.compress(digits.path, np.full_like(rows, 255)) != graph


def test_without_labels_the_score_is_agreement(digits: Model, registry: Registry) -> None:
    assert digits.samples_path is not None
    known = load_samples(digits.samples_path)
    blind = registry.register("blind", digits.path, samples=Samples(known.inputs, None, 100))
    small = compress(blind, "int8", registry=registry, progress=False)
    held = known.inputs[100:]
    same = read(Engine(small.path), held) == read(Engine(blind.path), held)
    assert small.scores == {"agreement": same.mean()}
    assert small.lineage["before"] == 1.0
    assert 0.9 <= small.scores["agreement"] <= 1


def test_a_model_of_numbers_is_judged_by_what_it_explains(registry: Registry) -> None:
    """A linear function and noise of its size explain half the variance each; in int8 nearly the same."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 1)).astype(np.float32)
    inputs = rng.normal(size=(900, 64)).astype(np.float32)
    right = inputs @ weights
    labels = right + rng.normal(0, right.std(), right.shape).astype(np.float32)
    shape = [[None, 64], [None, 1]]
    sides = [onnx.helper.make_tensor_value_info(name, 1, axes) for name, axes in zip("xy", shape, strict=True)]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "linear", sides[:1], sides[1:], [numpy_helper.from_array(weights, "w")])
    opset = onnx.helper.make_opsetid("", OPSET)
    made = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    lineage = {"classes": []}  # as a task of numbers has it
    model = registry.register("linear", made, samples=Samples(inputs, labels, 100), lineage=lineage)
    small = compress(model, "int8", registry=registry, progress=False)
    explained = 1 - ((right - labels)[100:] ** 2).mean() / labels[100:].var()
    assert small.lineage["before"] == pytest.approx(explained) == pytest.approx(0.5, abs=0.05)
    assert small.scores == {"r2": pytest.approx(explained, abs=0.01)}
    blind = registry.register("blind-linear", made, samples=Samples(inputs, None, 100))
    assert 0.99 < compress(blind, "int8", registry=registry, progress=False).scores["r2"] < 1


def test_what_cannot_be_compressed_is_refused(digits: Model, registry: Registry) -> None:
    bare = registry.register("bare", digits.path)
    with pytest.raises(UserError, match="bare@1/fp32 has no samples, so int8 can be neither calibrated nor scored"):
        compress(bare, "int8", registry=registry, progress=False)
    numbers = registry.register("numbers", digits.path, lineage={"classes": []})
    with pytest.raises(UserError, match="numbers@1/fp32 answers several numbers, and a variant is judged by one"):
        compress(numbers, "int8", registry=registry, progress=False)
    with pytest.raises(UserError, match="no compressor named 'int9'; perhaps int8"):
        compress(digits, "int9", registry=registry, progress=False)
    small = compress(digits, "int8", registry=registry, progress=False)
    with pytest.raises(UserError, match="is itself a variant; compress resnet8-digits@"):
        compress(small, "int8", registry=registry, progress=False)
    inputs = np.zeros((4, 8, 8), np.uint8)
    for calibration in (0, 4):
        thin = registry.register("thin", digits.path, samples=Samples(inputs, None, calibration))
        with pytest.raises(UserError, match=f"have {calibration} rows to calibrate and {4 - calibration} held"):
            compress(thin, "int8", registry=registry, progress=False)
    rows = np.zeros((2, 9), np.uint8)  # of another width than the graph's, which calibration finds when it runs it
    with pytest.raises(UserError, match=r"cannot be quantised: .*; it runs as it is\.$") as caught:
        int8.compress(digits.path, rows)
    assert "\n" not in str(caught.value)
    lost = registry.register("lost", small.path.read_bytes(), samples=Samples(inputs, None, 2))
    lost = replace(lost, path=lost.path.with_name("lost.onnx"))
    with pytest.raises(UserError, match=r"the graph of lost@1/fp32 is gone: there is no file \S+/lost\.onnx; make"):
        compress(lost, "int8", registry=registry, progress=False, fresh=True)
    twice = registry.register("twice", small.path, samples=Samples(inputs, None, 2))
    with pytest.raises(UserError, match="is quantised already"):
        compress(twice, "int8", registry=registry, progress=False)
    assert registry.variants(bare) == [bare]


def test_times_are_paired(digits: Model) -> None:
    """An engine against itself takes as long, whatever else runs here."""
    assert digits.samples_path is not None
    engine = Engine(digits.path)
    one, other = paired_ms(engine, engine, load_samples(digits.samples_path).inputs)
    assert one == pytest.approx(other, rel=0.5)


def test_a_spectrum_stays_in_float(tmp_path: Path, digits: Model) -> None:
    """What comes before a logarithm is not quantised, the layers after it are; a net without one has no such part."""
    from airserve.catalog import nets
    from airserve.learn.exporting import export
    from airserve.learn.nets import Form

    waves = (1_000 * np.random.default_rng(0).normal(size=(8, 2_000))).astype(np.int16)
    net = nets["ds-cnn"].build(nets["ds-cnn"].Config(width=16, layers=1), Form((2_000,), 3))
    path = tmp_path / "waves.onnx"
    path.write_bytes(export(net, 0.0, 1_000.0, waves))
    float_ones = set(int8.before_logarithm(path))
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    logarithm = next(name for name, node in nodes.items() if node.op_type == "Log")
    convolutions = [name for name, node in nodes.items() if node.op_type == "Conv"]
    assert [name in float_ones for name in convolutions] == [True, *[False] * (len(convolutions) - 1)]
    assert logarithm not in float_ones

    small = onnx.load_from_string(int8.compress(path, waves)).graph
    maker = {name: node.op_type for node in small.node for name in node.output}
    fed = {node.name: maker.get(node.input[0]) for node in small.node if node.op_type == "Conv"}
    assert fed[convolutions[0]] != "DequantizeLinear"
    assert "DequantizeLinear" in fed.values()
    assert int8.before_logarithm(digits.path) == []
