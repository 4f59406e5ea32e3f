"""The two graphs that servers are measured with: TINY, an MLP 784-128-10, and REAL, ResNet-18 at 224 x 224.

Weights are random, for time does not depend on them; batch normalisation is folded into the convolutions, as exporters
leave it. He et al. 2015, arXiv:1512.03385, table 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.random import Generator, default_rng
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Tensor

TINY_INPUT = Tensor("x", "float32", (-1, 784))
REAL_INPUT = Tensor("x", "float32", (-1, 3, 224, 224))
CHANNELS = (64, 128, 256, 512)


def tiny(path: Path) -> Path:
    """Two matrix products."""
    net = _Net(default_rng(0))
    net.add("Gemm", "x", net.weights(784, 128), net.weights(128), to="a")
    net.add("Relu", "a", to="h")
    net.add("Gemm", "h", net.weights(128, 10), net.weights(10), to="y")
    return net.save(path, TINY_INPUT, 10)


def real(path: Path) -> Path:
    """Eight residual blocks of two convolutions."""
    net = _Net(default_rng(0))
    at = net.add("MaxPool", net.convolution("x", 3, 64, 7, 2), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for wide in CHANNELS:
        for first in (True, False):
            stride = 2 if first and wide > 64 else 1
            left = net.convolution(net.convolution(at, channels, wide, 3, stride), wide, wide, 3, 1, relu=False)
            right = net.convolution(at, channels, wide, 1, stride, relu=False) if channels != wide else at
            at, channels = net.add("Relu", net.add("Add", left, right)), wide
    flat = net.add("Flatten", net.add("GlobalAveragePool", at))
    net.add("Gemm", flat, net.weights(512, 1000), net.weights(1000), to="y")
    return net.save(path, REAL_INPUT, 1000)


class _Net:
    def __init__(self, rng: Generator) -> None:
        self._rng = rng
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weights(self, *shape: int) -> str:
        """Random weights whose sums keep the size of their terms; their name."""
        spread = 1 / np.sqrt(max(1, np.prod(shape[1:] if len(shape) == 4 else shape[:1])))
        name = f"w{len(self._weights)}"
        array = self._rng.normal(scale=spread, size=shape).astype("float32")
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        to = to or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [to], **attributes))
        return to

    def convolution(self, at: str, channels: int, wide: int, size: int, stride: int, relu: bool = True) -> str:
        inputs = (at, self.weights(wide, channels, size, size), self.weights(wide))
        at = self.add("Conv", *inputs, kernel_shape=[size, size], strides=[stride] * 2, pads=[size // 2] * 4)
        return self.add("Relu", at) if relu else at

    def save(self, path: Path, given: Tensor, classes: int) -> Path:
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [helper.make_tensor_value_info(given.name, TensorProto.FLOAT, ["n", *given.shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
            self._weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path
