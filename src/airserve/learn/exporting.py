"""Exporting: a trained net as an ONNX graph that takes what the sensor gives, checked against the net itself."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort

from airserve.errors import UserError
from airserve.model import Array, Engine, ModelError

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError:
    raise UserError("nets need torch: `pip install 'airserve[learn]'`.") from None

AGREES = 1e-3  # the exported graph's largest error, relative to the largest logit
OPSET = 17


class Sensed(nn.Module):
    """A net behind its sensor: takes the sensor's uint8 values, shape (n, ...), and normalises them."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.scale = net, mean, 1 / std

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.float() - self.mean) * self.scale)


def export(net: nn.Module, mean: float, std: float, examples: Array) -> bytes:
    """Step 7: the net as ONNX that takes what the sensor gives, uint8, batch free, and returns `logits`.

    Constants are folded and norms are part of their convolutions. Raises `ModelError` when the graph disagrees with
    torch on three of the examples; the graph is traced with one.
    """
    sensed = Sensed(net, mean, std).cpu().eval()
    file = io.BytesIO()
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
            output_names=["logits"],
            dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
        )
    graph = tidy(file.getvalue())
    few = np.ascontiguousarray(examples[-3:])
    with torch.inference_mode():
        wanted = sensed(torch.tensor(few)).numpy()
    found = Engine(graph).run([few])[0]
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if found.shape != wanted.shape or not error < AGREES:
        raise ModelError(
            f"the exported graph differs from the net by {error:.1e} of its largest logit; nothing is kept."
        )
    return graph


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
