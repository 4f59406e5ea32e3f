"""Exporting: a trained net as an ONNX graph that takes what the sensor gives, checked against the net itself."""

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from airserve.errors import UserError
from airserve.model import Array, Engine, ModelError

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError:
    raise UserError("nets need torch: `pip install 'airserve[learn]'`.") from None

AGREES = 1e-3  # the exported graph's largest error, relative to the largest output
OPSET = 17
LONGER = 5  # a text is also asked with so many more words


class Sensed(nn.Module):
    """A net behind its sensor: takes the sensor's values, shape (n, ...), and normalises them.

    `mean` and `std` are numbers for pictures, arrays with one for each column of a table, None for ids.
    """

    def __init__(self, net: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        self.net = net
        self.mean, self.scale = mean, None if std is None else 1 / std

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.mean is None else (x.float() - self.mean) * self.scale)


def export(
    net: nn.Module, mean: Any, std: Any, examples: Array, output: str = "logits", free_length: bool = False
) -> bytes:
    """Step 7: the net as ONNX that takes what the sensor gives, batch free, and returns `output`.

    Constants are folded and norms are part of their convolutions. With `free_length` the inputs' second axis is free
    too. The graph is traced with one of the examples. Raises `ModelError` when it disagrees with torch on three of
    them, or on these with other lengths.
    """
    sensed = Sensed(net, mean, std).cpu().eval()
    file = io.BytesIO()
    free = {0: "n", 1: "length"} if free_length else {0: "n"}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch says that this exporter is its old one; the new one is 30 times as slow and no better on these nets.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            sensed,
            (torch.tensor(examples[:1]),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=[output],
            dynamic_axes={"input": free, output: {0: "n"}},
        )
    graph = tidy(file.getvalue())
    engine, few = Engine(graph), np.ascontiguousarray(examples[-3:])
    check(engine, sensed, few)
    if free_length:
        check(engine, sensed, np.pad(few, ((0, 0), (0, LONGER))))
        check(engine, sensed, np.ascontiguousarray(few[:, : few.shape[1] // 2]))
    return graph


def check(engine: Engine, net: nn.Module, rows: Array) -> None:
    """Raises `ModelError` when the graph's answers to some rows are not the net's."""
    with torch.inference_mode():
        wanted = net(torch.tensor(rows)).numpy()
    found = engine.run([rows])[0]
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max()) if found.shape == wanted.shape else float("inf")
    if not error < AGREES:
        raise ModelError(
            f"the exported graph differs from the net by {error:.1e} of its largest output, for inputs of shape "
            f"{rows.shape}; nothing is kept."
        )


def tidy(graph: bytes) -> bytes:
    """The graph after onnxruntime's basic optimisation: constants folded, paddings fused, standard operators only."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="airserve-") as folder:
        path = Path(folder) / "tidy.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()
