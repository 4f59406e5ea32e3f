"""Models: engines, samples and pictures, and what is said when they cannot be used."""

import io
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from airserve.linux import give_back
from airserve.model import (
    Engine,
    Function,
    Model,
    ModelError,
    Signature,
    Tensor,
    decode_jpeg,
    open_function,
    shrink_memory,
)
from airserve.samples import Samples, load_samples, save_samples

HIDDEN = 1_000_000


def graph(operator: str, kind: int, shape: list[int | str]) -> bytes:
    """One operator with one input."""
    made = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


def picture(height: int = 6, width: int = 5, form: str = "PNG") -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue(), pixels


def test_an_engine_states_its_signature_and_runs(tmp_path: Path) -> None:
    data = graph("Neg", TensorProto.FLOAT, ["n", 3])
    path = tmp_path / "neg.onnx"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        engine = Engine(source)
        assert engine.signature == Signature((Tensor("x", "float32", (-1, 3)),), (Tensor("y", "float32", (-1, 3)),))
        assert engine.run([np.ones((2, 3), np.float32)])[0].tolist() == [[-1] * 3] * 2
    signature, run = open_function(Function("neg", "model", str(path)))
    assert signature.inputs[0].name == "x"
    assert run([np.ones((1, 3), np.float32)])[0].tolist() == [[-1] * 3]


def test_an_engine_takes_text() -> None:
    engine = Engine(graph("Identity", TensorProto.STRING, ["n"]))
    assert engine.signature.inputs[0].dtype == "bytes"
    assert engine.run([np.array([b"caf\xc3\xa9", b"b"], object)])[0].tolist() == ["café", "b"]
    with pytest.raises(ModelError, match="a text input is not UTF-8"):
        engine.run([np.array([b"\xff"], object)])


def wide() -> bytes:
    """One number made a million, twice over, and summed: megabytes of activations."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ReduceSum", ["b"], ["y"], keepdims=0),
    ]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, HIDDEN], np.ones(HIDDEN, np.float32).tobytes(), raw=True)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "wide", [x], [y], [weights])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def test_a_warm_engine_asks_the_system_for_no_memory() -> None:
    """Megabytes of activations in any thread, of a Model that takes the place of another as well."""
    graph, row = wide(), np.ones((2, 1), np.float32)

    def pages(engine: Engine) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        assert engine.run([row])[0] == 2 * HIDDEN
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    engine = Engine(graph)
    for _ in range(3):  # the first runs may
        pages(engine)
    with ThreadPoolExecutor(1) as thread:
        warm = [thread.submit(pages, engine).result() for _ in range(5)]
        warm += [thread.submit(pages, Engine(graph)).result() for _ in range(3)]
    activations = 2 * HIDDEN * 4 // resource.getpagesize()
    assert max(warm) < activations / 10


def test_the_engines_hold_what_the_largest_runs_need_until_it_is_given_back() -> None:
    def held() -> int:
        give_back()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    engine = Engine(wide())
    shrink_memory()
    before = held()
    most = 24 * HIDDEN * 4
    for rows in range(1, 25):  # each more than any run before, which together need 12 times as much as the last
        assert engine.run([np.ones((rows, 1), np.float32)])[0] == rows * HIDDEN
    assert most < held() - before < 4 * most
    shrink_memory()
    assert held() - before < most / 10
    assert engine.run([np.ones((3, 1), np.float32)])[0] == 3 * HIDDEN


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"onnx" * 100, graph("NoSuch", TensorProto.FLOAT, [1])])
def test_what_is_no_graph_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"^odd\.onnx cannot be opened as an ONNX model: .*\.$"):
        Engine(path)
    with pytest.raises(ModelError, match=r"^none\.onnx cannot be opened as an ONNX model: there is no such file\.$"):
        Engine(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"^these bytes cannot be opened as an ONNX model"):
        Engine(data)


def test_samples_come_back(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(4, 3)
    save_samples(Samples(rows, np.arange(4), 1), tmp_path / "rows.npz")
    found = load_samples(tmp_path / "rows.npz")
    np.testing.assert_array_equal(found.inputs, rows)
    assert (found.labels is not None, found.calibration, found.encoded) == (True, 1, None)
    assert found.held().inputs.tolist() == rows[1:].tolist()
    assert found.held().calibration == 0
    save_samples(Samples(rows), tmp_path / "bare.npz")
    assert load_samples(tmp_path / "bare.npz").labels is None


def test_encoded_samples_come_back_as_pixels_and_bytes(tmp_path: Path) -> None:
    data, pixels = picture()
    samples = Samples(np.stack([pixels, pixels]), None, 1, (data, data), "image/png")
    save_samples(samples, tmp_path / "photos.npz")
    found = load_samples(tmp_path / "photos.npz")
    np.testing.assert_array_equal(found.inputs, samples.inputs)  # PNG loses nothing
    assert (found.encoded, found.media, found.held().encoded) == ((data, data), "image/png", (data,))


def test_a_file_that_holds_no_samples_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    with pytest.raises(ModelError, match=r"other\.npz has no array named `inputs`; it has pixels\."):
        load_samples(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("inputs: 3")
    np.savez(tmp_path / "objects.npz", inputs=np.array([{}], object), allow_pickle=True)
    for name in ("array.npy", "empty.npz", "text.npz", "objects.npz"):
        with pytest.raises(ModelError, match=f"^{name} is not a samples file"):
            load_samples(tmp_path / name)
    with pytest.raises(ModelError, match=r"^there is no file \S+/none\.npz; give the path of samples"):
        load_samples(tmp_path / "none.npz")


def test_a_third_of_the_rows_calibrate_where_the_file_does_not_say(tmp_path: Path) -> None:
    for rows, calibration in ((1, 0), (10, 3), (900, 200)):
        np.savez(tmp_path / "rows.npz", inputs=np.zeros((rows, 2)))
        assert load_samples(tmp_path / "rows.npz").calibration == calibration
    for stated in (0, 4, np.array([4]), 4.0, np.uint8(10)):
        np.savez(tmp_path / "rows.npz", inputs=np.zeros((10, 2)), calibration=stated)
        assert load_samples(tmp_path / "rows.npz").calibration == np.asarray(stated).item()


@pytest.mark.parametrize("stated", [-5, 0.5, 11, np.nan, np.inf, "half", True, np.arange(3), np.zeros(0)])
def test_a_calibration_that_is_no_number_of_rows_is_one_sentence(stated: object, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((10, 2)), calibration=stated)
    with pytest.raises(ModelError, match=r"^rows\.npz: `calibration` is .*; it is how many of the 10 rows calibrate"):
        load_samples(tmp_path / "rows.npz")


def test_one_number_is_no_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=3)
    with pytest.raises(ModelError, match=r"^rows\.npz has one number as `inputs`"):
        load_samples(tmp_path / "rows.npz")


def test_pictures_are_decoded() -> None:
    data, pixels = picture()
    np.testing.assert_array_equal(decode_jpeg([np.array([data, data], object)])[0], np.stack([pixels, pixels]))
    other, _ = picture(height=7)
    for wrong in ([b"not a picture"], [data[:40]], [data, other]):
        with pytest.raises(ModelError, match=r"^the picture cannot be decoded"):
            open_function(Function("jpeg", "preprocess"))[1]([np.array(wrong, object)])


def test_a_picture_is_decoded_before_the_first_request_comes() -> None:
    opened = "from airserve.model import Function, open_function; open_function(Function('jpeg', 'preprocess'))"
    asked = f"import sys; {opened}; assert 'PIL.JpegImagePlugin' in sys.modules"
    subprocess.run([sys.executable, "-c", asked], check=True)


def test_a_model_has_a_reference() -> None:
    model = Model("resnet8", 3, "int8", Path("x.onnx"), "0", Signature((), ()))
    assert model.reference == "resnet8@3/int8"


def test_an_engine_tells_nobody_of_what_it_runs(tmp_path):
    """onnxruntime's telemetry would keep an identifier of the machine and its events in the user's cache."""
    code = (
        "from airserve.model import Engine; import onnx; from onnx import helper as h\n"
        "x, y = (h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in 'xy')\n"
        "graph = h.make_graph([h.make_node('Relu', ['x'], ['y'])], 'g', [x], [y])\n"
        "Engine(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=9).SerializeToString())"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run(
        [sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}, check=True
    )
    assert not list(tmp_path.iterdir())
