"""Small graphs to cut, profile and plan: a residual net for 8x8 pictures, made of random weights, and its int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import Generator, default_rng
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Engine, Model
from airserve.registry import Registry
from airserve.samples import Samples

CALIBRATION = 20


def residual(rng: Generator, width: int = 8) -> onnx.ModelProto:
    """uint8 (batch, 8, 8) -> stem, residual block, stride, pool -> logits (batch, 10)."""
    constants = []

    def weight(name: str, *shape: int) -> str:
        scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
        constants.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    def conv(x: str, out: str, given: int, made: int, stride: int = 1) -> onnx.NodeProto:
        names = [x, weight(f"{out}_w", made, given, 3, 3), weight(f"{out}_b", made)]
        return helper.make_node("Conv", names, [out], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)

    constants.append(numpy_helper.from_array(np.array([1]), "channel"))
    constants.append(numpy_helper.from_array(np.float32(255), "white"))
    nodes = [
        helper.make_node("Cast", ["image"], ["image_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["image_f", "channel"], ["plane"]),
        helper.make_node("Div", ["plane", "white"], ["light"]),
        conv("light", "/stem/conv/Conv_output_0", 1, width),
        helper.make_node("Relu", ["/stem/conv/Conv_output_0"], ["/stem/act/Relu_output_0"]),
        conv("/stem/act/Relu_output_0", "/block/block.0/Conv_output_0", width, width),
        helper.make_node("Relu", ["/block/block.0/Conv_output_0"], ["inner"]),
        conv("inner", "/block/block.1/Conv_output_0", width, width),
        helper.make_node("Add", ["/block/block.1/Conv_output_0", "/stem/act/Relu_output_0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["/block/act/Relu_output_0"]),
        conv("/block/act/Relu_output_0", "/down/Conv_output_0", width, 2 * width, stride=2),
        helper.make_node("Relu", ["/down/Conv_output_0"], ["/down/act/Relu_output_0"]),
        helper.make_node("GlobalAveragePool", ["/down/act/Relu_output_0"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", weight("fc_w", 10, 2 * width), weight("fc_b", 10)], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantised(path: Path, to: Path, rows: np.ndarray) -> Path:
    """The static QDQ U8S8 form of a graph."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"image": row[None]} for row in rows])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        path, to, Rows(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    return to


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Smooth random pictures, uint8 (120, 8, 8)."""
    rng = default_rng(5)
    coarse = rng.uniform(0, 255, (120, 4, 4))
    return np.kron(coarse, np.ones((2, 2))).astype(np.uint8)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory, pictures: np.ndarray) -> dict[str, Path]:
    """The net as files: fp32, and int8 (QDQ)."""
    folder = tmp_path_factory.mktemp("graphs")
    onnx.save(residual(default_rng(3)), folder / "fp32.onnx")
    return {
        "fp32": folder / "fp32.onnx",
        "int8": quantised(folder / "fp32.onnx", folder / "int8.onnx", pictures[:CALIBRATION]),
    }


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, graphs: dict[str, Path], pictures: np.ndarray) -> Registry:
    """A registry with the net, its int8, and labels that are what fp32 answers."""
    kept = Registry(tmp_path_factory.mktemp("home"))
    engine = Engine(graphs["fp32"])
    labels = engine.run([pictures])[0].argmax(axis=1)
    model = kept.register("digits", graphs["fp32"], samples=Samples(pictures, labels, CALIBRATION))
    kept.register("digits", graphs["int8"], variant="int8", version=model.version)
    kept.register("blind", graphs["fp32"])
    return kept


@pytest.fixture(scope="session")
def model(registry: Registry) -> Model:
    return registry.get("digits")
