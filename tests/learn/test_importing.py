"""Importing: anyone's ONNX, checked by a run on its samples, and published weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.contract import Endpoint
from airserve.errors import UserError
from airserve.learn.compression import compress
from airserve.learn.importing import import_model
from airserve.model import Engine, Function, Model
from airserve.registry import Registry
from airserve.samples import Samples, load_samples, save_samples
from airserve.serve.served import Served

INPUTS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


def classifier(path: Path, batch: int | str = "n", node: str = "MatMul", external: bool = False) -> Path:
    """y = x w with w the unit matrix: the class is the largest input."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(node, ["x", "w"], ["y"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def speller(path: Path) -> Path:
    """What answers with words, as a classifier of words from skl2onnx does first."""
    sides = [
        helper.make_tensor_value_info(name, kind, ["n", 4]) for name, kind in (("x", 1), ("y", TensorProto.STRING))
    ]
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)
    graph = helper.make_graph([node], "speller", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def labeller(path: Path) -> Path:
    """The class as an integer, then what it is of, as a classifier of skl2onnx answers with zipmap False."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["x"], ["p"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, kind, ["n", 4][:axes])
        for name, kind, axes in (
            ("x", TensorProto.FLOAT, 2),
            ("label", TensorProto.INT64, 1),
            ("p", TensorProto.FLOAT, 2),
        )
    ]
    graph = helper.make_graph(nodes, "labeller", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def zipped(path: Path) -> Path:
    """Probabilities by class, as a classifier of skl2onnx answers unless it is told zipmap False."""
    node = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    sides = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])], [helper.make_value_info("z", kind)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "zipped", *sides)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def samples(path: Path, inputs: np.ndarray = INPUTS, labels: np.ndarray | None = None, calibration: int = 10) -> Path:
    save_samples(Samples(inputs, labels, calibration), path)
    return path


def test_labels_give_an_accuracy(tmp_path: Path, registry: Registry) -> None:
    labels = INPUTS.argmax(1)
    labels[10:20] = (labels[10:20] + 1) % 4  # ten of forty held rows are wrong
    file = samples(tmp_path / "rows.npz", labels=labels)
    model = import_model(str(classifier(tmp_path / "theirs.onnx")), "theirs", file, registry=registry)
    assert model.scores == {"accuracy": 0.75}
    assert (model.reference, model.lineage["source"], model.lineage["opset"]) == (
        "theirs@1/fp32",
        "theirs.onnx",
        {"ai.onnx": 17},
    )
    assert model.samples_path is not None
    assert load_samples(model.samples_path).calibration == 10
    assert import_model(str(tmp_path / "theirs.onnx"), "theirs", file, registry=registry) == model


def test_a_class_that_is_said_as_an_integer_is_one(tmp_path: Path, registry: Registry) -> None:
    path, labels = str(labeller(tmp_path / "labeller.onnx")), INPUTS.argmax(1)
    labels[10:20] = (labels[10:20] + 1) % 4
    file = samples(tmp_path / "labels.npz", labels=labels)
    assert import_model(path, "labeller", file, registry=registry).scores == {"accuracy": 0.75}


def test_without_labels_it_agrees_and_without_samples_it_has_no_score(tmp_path: Path, registry: Registry) -> None:
    path = classifier(tmp_path / "bare.onnx")
    assert import_model(str(path), "unlabelled", samples(tmp_path / "r.npz"), registry=registry).scores == {
        "agreement": 1.0
    }
    bare = import_model(str(path), None, None, registry=registry)
    assert (bare.name, bare.scores, bare.samples_path) == ("bare", {}, None)


def test_weights_beside_the_file_are_taken_in(tmp_path: Path, registry: Registry) -> None:
    path = classifier(tmp_path / "beside.onnx", external=True)
    assert (tmp_path / "weights.bin").exists()
    model = import_model(str(path), "beside", None, registry=registry)
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_array_equal(Engine(model.path).run([INPUTS])[0], INPUTS)


def test_what_cannot_be_imported_is_one_sentence(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    good, rows = classifier(tmp_path / "good.onnx"), samples(tmp_path / "rows.npz")
    text = tmp_path / "notes.onnx"
    text.write_text("not a graph")
    array = tmp_path / "array.npy"
    np.save(array, INPUTS)
    truncated = tmp_path / "cut.npz"
    truncated.write_bytes(rows.read_bytes()[:200])
    torn, locked = tmp_path / "torn.npz", tmp_path / "locked.npz"
    np.savez_compressed(torn, inputs=INPUTS)
    packed = bytearray(torn.read_bytes())
    packed[100:200] = bytes(100)
    torn.write_bytes(packed)
    packed = bytearray(rows.read_bytes())
    for at in (6, packed.rindex(b"PK\x01\x02") + 8):  # of a file and of the last one in the list: it is encrypted
        packed[at] |= 1
    locked.write_bytes(packed)
    gap = INPUTS.copy()
    gap[7, 2] = np.nan
    strange = INPUTS.argmax(1)
    strange[9] = 17
    one_hot, words = np.eye(4)[INPUTS.argmax(1)], np.array(["low"] * 50)
    cases = [
        (text, None, r"notes\.onnx cannot be opened as an ONNX model"),
        (tmp_path / "none.onnx", None, r"none\.onnx cannot be opened as an ONNX model: there is no such file\.$"),
        (good, tmp_path / "none.npz", r"there is no file \S+none\.npz"),
        (good, text, r"notes\.onnx is not a samples file"),
        (good, array, r"array\.npy is not a samples file"),
        (good, truncated, r"cut\.npz is not a samples file"),
        (good, torn, r"torn\.npz is not a samples file"),
        (good, locked, r"locked\.npz is not a samples file.*encrypted"),
        (good, samples(tmp_path / "hot.npz", labels=one_hot), r"labels are float64 of shape \[50, 4\].*labels\.argmax"),
        (
            good,
            samples(tmp_path / "words.npz", labels=words),
            r"the labels are <U3 of shape \[50\]; give each row the n",
        ),
        (speller(tmp_path / "speller.onnx"), rows, r"speller answers 'y' first, which is bytes, and samples score num"),
        (
            good,
            samples(tmp_path / "wide.npz", np.zeros((9, 5), np.float32), calibration=2),
            r"float32 of shape \[9, 5\], but good",
        ),
        (good, samples(tmp_path / "bytes.npz", INPUTS.astype(np.uint8)), r"uint8 of shape \[50, 4\], but good"),
        (good, samples(tmp_path / "all.npz", calibration=50), "all 50 samples are for calibration"),
        (good, samples(tmp_path / "gap.npz", gap), "row 7 of the samples, counted from 0, holds NaN"),
        (
            good,
            samples(tmp_path / "strange.npz", labels=strange),
            "label of row 9, counted from 0, is 17, but good answers 4 numbers a row, so its classes are 0 to 3",
        ),
        (good, samples(tmp_path / "short.npz", labels=np.zeros(7, int)), "50 inputs but 7 labels"),
        (classifier(tmp_path / "one.onnx", batch=1), rows, "takes batches of 1 only"),
    ]
    for path, file, sentence in cases:
        with pytest.raises(UserError, match=sentence) as caught:
            import_model(str(path), "theirs", file, registry=registry)
        assert "\n" not in str(caught.value)
    for source, sentence in (
        ("efficientnet-lite1", "no net with published weights named 'efficientnet-lite1'; perhaps efficientnet-lite0"),
        ("resnet8", "no net with published weights named 'resnet8'"),
    ):
        with pytest.raises(UserError, match=sentence):
            import_model(source, registry=registry)
    with pytest.raises(UserError, match="brings its own samples"):
        import_model("efficientnet-lite0", None, rows, registry=registry)
    assert registry.models() == []
    assert not (registry.home / "models").exists()


def test_ones_own_model_is_compressed_with_samples_that_say_no_more_than_inputs(tmp_path: Path) -> None:
    registry, file = Registry(tmp_path / "home"), tmp_path / "rows.npz"
    np.savez(file, inputs=INPUTS, labels=INPUTS.argmax(1))
    mine = import_model(str(classifier(tmp_path / "mine.onnx")), None, file, registry=registry)
    small = compress(mine, "int8", registry=registry, progress=False)
    assert (small.lineage["calibration"], small.lineage["scored"], small.lineage["before"]) == (16, 34, 1.0)
    assert small.scores["accuracy"] > 0.9


def test_gaps_are_for_a_graph_that_fills_them(tmp_path: Path, registry: Registry) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    fill = {"imputed_value_floats": [0.0], "replaced_value_float": float("nan")}
    node = helper.make_node("Imputer", ["x"], ["y"], domain="ai.onnx.ml", **fill)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "filler", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "filler.onnx")
    gap = INPUTS.copy()
    gap[7, 2] = np.nan
    file = samples(tmp_path / "gap.npz", gap, np.nan_to_num(gap).argmax(1))
    assert import_model(str(tmp_path / "filler.onnx"), None, file, registry=registry).scores == {"accuracy": 1.0}


def test_what_no_protocol_carries_is_neither_imported_nor_served(tmp_path: Path) -> None:
    registry, path = Registry(tmp_path / "home"), zipped(tmp_path / "zipped.onnx")
    sentence = (
        r"z is seq\(map\(int64,tensor\(float\)\)\), which cannot be served; export it again with "
        r"options={'zipmap': False}, as skl2onnx's to_onnx takes them\.$"
    )
    for file in (None, samples(tmp_path / "rows.npz")):
        with pytest.raises(UserError, match="^zipped: " + sentence):
            import_model(str(path), "theirs", file, registry=registry)
    assert registry.models() == []
    with pytest.raises(UserError, match="^endpoint zipped: " + sentence):
        Served(Endpoint("zipped", (Function("zipped", "model", str(path)),)))


def test_importing_compressing_and_the_registry_load_no_torch() -> None:
    code = (
        "import sys, airserve.registry, airserve.learn.compression, airserve.learn.importing, "
        "airserve.learn.compressors.int8, airserve.learn.tasks.photos, airserve.learn.tasks.fashion_mnist; "
        "print([name for name in ('torch', 'lightning_fabric', 'skimage', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.fixture(scope="module")
def recognise(registry: Registry) -> Model:
    return import_model("efficientnet-lite0", registry=registry)


def test_published_weights_answer_as_photographs_ask(recognise: Model, registry: Registry) -> None:
    assert recognise.scores == {"agreement": 1.0}
    assert recognise.signature.inputs[0].shape == (-1, 224, 224, 3)
    assert recognise.signature.inputs[0].dtype == "uint8"
    assert recognise.samples_path is not None
    held = load_samples(recognise.samples_path).held()
    assert held.encoded is not None
    found = Engine(recognise.path).run([held.inputs[:20]])[0].argmax(1)
    assert set(found) & {967, 281, 282, 285, 665, 985, 698}  # espresso, cats, moped, daisy, palace
    assert import_model("efficientnet-lite0", registry=registry) == recognise
    operators = {node.op_type for node in onnx.load(recognise.path).graph.node}
    assert operators <= {"Cast", "Sub", "Mul", "Transpose", "Conv", "Clip", "Add", "ReduceMean", "Gemm", "Pad"}
