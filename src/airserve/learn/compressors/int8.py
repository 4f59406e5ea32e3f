"""Eight-bit integers in place of floats. Jacob et al. 2018, arXiv:1712.05877; formats as onnxruntime quantises.

Convolution nets: static, quantise-dequantise pairs, activations uint8, weights int8 per channel (U8S8: twice as fast as
S8S8 on AVX-512). Nets of matrices alone: dynamic, for their activations' ranges are cheap to find at run time.
"""

import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import final

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from airserve.learn.importers import sentence
from airserve.model import Array, ModelError

MATRICES = {"MatMul", "Gemm"}
# Not Sub and Mul, the sensor's normalisation: on its few values they cost more in int8 than in float.
STATIC = ["Conv", "ConvTranspose", "Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"]
SMALL = 16_384  # weights of a matrix below which quantising its input and its output costs more than it saves
PER_CHANNEL = 13  # the first opset whose DequantizeLinear has a scale for each channel
SHORT = 16  # terms of a sum in a convolution below which int8 is slower: 3x3 over one channel takes four times as long


def compress(path: Path, calibration: Array) -> bytes:
    """The graph in int8. Raises `ModelError` when it has neither convolutions nor matrices, or is quantised already.

    `calibration` holds inputs as the graph takes them, shape (n, ...); ranges are the least and the greatest seen.
    """
    operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    if quantised := operators & {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger"}:
        raise ModelError(f"{path.name} is quantised already: it has {', '.join(sorted(quantised))}.")
    if not operators & {"Conv", *MATRICES}:
        raise ModelError(f"{path.name} has neither convolutions nor matrices, so int8 gains nothing.")
    with tempfile.TemporaryDirectory(prefix="airserve-") as folder:
        ready, small = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        try:
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
            if "Conv" in operators:
                update_opset(ready)
                quantize_static(
                    str(ready),
                    str(small),
                    Rows(path, calibration),
                    op_types_to_quantize=[*STATIC, *sorted(MATRICES)],
                    nodes_to_exclude=[*too_small(ready), *before_logarithm(ready)],
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
            else:
                matrices = sorted(MATRICES)
                quantize_dynamic(str(ready), str(small), op_types_to_quantize=matrices, weight_type=QuantType.QInt8)
        except Exception as error:  # the tools raise whatever they meet
            raise ModelError(f"{path.name} cannot be quantised: {sentence(error)}; it runs as it is.") from None
        return small.read_bytes()


def update_opset(path: Path) -> None:
    """The same graph in the first opset that knows what quantising writes, where it is of an older one."""
    graph = onnx.load(path)
    if all(entry.version >= PER_CHANNEL for entry in graph.opset_import if entry.domain in ("", "ai.onnx")):
        return
    onnx.save(onnx.version_converter.convert_version(graph, PER_CHANNEL), path)


def too_small(path: Path) -> list[str]:
    """The names of the nodes that stay in float: small matrices, and convolutions whose sums are short."""
    graph = onnx.load(path).graph
    shapes = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    named = []
    for node in graph.node:
        weights = [shapes[name] for name in node.input[:2] if name in shapes]
        grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        if (node.op_type in MATRICES and any(prod(shape) < SMALL for shape in weights)) or (
            node.op_type == "Conv" and not grouped and any(prod(shape[1:]) < SHORT for shape in weights)
        ):
            named.append(node.name)
    return named


def before_logarithm(path: Path) -> list[str]:
    """The names of the nodes that stay in float because a logarithm follows, and layers after it: a spectrum.

    A logarithm looks at small numbers as closely as at large ones, and eight bits do not: a keyword spotter that
    scored 0.97 scores 0.29 with its log-mel front end in int8.
    """
    makers: dict[str, set[str]] = {}  # of a tensor: the nodes that it depends on
    spectrum: set[str] = set()
    logarithms: dict[str, set[str]] = {}
    for node in onnx.load(path).graph.node:
        needed = set().union(*(makers.get(name, set()) for name in node.input))
        if node.op_type in {"Conv", *MATRICES}:
            spectrum.update(*(before for name, before in logarithms.items() if name in needed))
        if node.op_type == "Log":
            logarithms[node.name] = needed
        makers.update(dict.fromkeys(node.output, needed | {node.name}))
    return sorted(spectrum)


@final
class Rows(CalibrationDataReader):
    """The calibration rows one by one: batches would have to be of one size, and the last one seldom is."""

    def __init__(self, path: Path, inputs: Array) -> None:
        self.name = onnx.load(path, load_external_data=False).graph.input[0].name
        self.rows: Iterator[Array] = iter(inputs)

    def get_next(self) -> dict[str, Array] | None:
        row = next(self.rows, None)
        return None if row is None else {self.name: np.ascontiguousarray(row[None])}
