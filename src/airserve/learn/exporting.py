"""Exporting: a trained net as ONNX graphs that take what the sensor gives, checked against the net itself."""

import io
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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

Axes = Mapping[int, str]  # the free axes of an input or output, by what their length is called
Sense = Callable[[nn.Module], nn.Module]  # puts a module behind the sensor


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


@dataclass(frozen=True)
class Graph:
    """What becomes one file: a module, its inputs and outputs by name, and examples of all inputs in their order.

    It is traced with the first example and must agree with torch on each: they differ in every free axis.
    """

    module: nn.Module
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    examples: Sequence[Sequence[Tensor]]


def export_all(
    net: nn.Module, mean: Any, std: Any, rows: Array, output: str, free_length: bool, metadata: Mapping[str, str]
) -> dict[str, bytes]:
    """Step 7: the graphs of a net by what they are of it, with `metadata` in each: {"": the whole net} for most.

    A net of several parts, or of several inputs, has a method `graphs(sense, rows)`, {part: Graph}; `rows` are
    inputs as the sensor gives them.
    """
    if not hasattr(net, "graphs"):
        return {"": noted(export(net, mean, std, rows, output, free_length), metadata)}
    graphs = net.cpu().eval().graphs(lambda module: Sensed(module, mean, std), rows)
    return {part: noted(export_graph(graph), metadata) for part, graph in graphs.items()}


def export(
    net: nn.Module, mean: Any, std: Any, examples: Array, output: str = "logits", free_length: bool = False
) -> bytes:
    """The net as ONNX that takes what the sensor gives, batch free, and returns `output`.

    With `free_length` the inputs' second axis is free too. Raises `ModelError` when the graph disagrees with torch on
    three of the examples, or on these with other lengths.
    """
    few = examples[-3:]
    rows = [examples[:1], few]
    if free_length:
        rows += [np.pad(few, ((0, 0), (0, LONGER))), few[:, : few.shape[1] // 2]]
    free = {0: "n", 1: "length"} if free_length else {0: "n"}
    inputs = [(torch.tensor(np.ascontiguousarray(each)),) for each in rows]
    return export_graph(Graph(Sensed(net, mean, std), {"input": free}, {output: {0: "n"}}, inputs))


def export_graph(graph: Graph) -> bytes:
    """A graph as ONNX. Constants are folded and norms are part of their convolutions.

    Raises `ModelError` when its answers to an example are not the module's.
    """
    module, file = graph.module.cpu().eval(), io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch says that this exporter is its old one; the new one is 30 times as slow and no better on these nets.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(graph.examples[0]),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: dict(free) for name, free in (*graph.inputs.items(), *graph.outputs.items()) if free},
        )
    made = tidy(file.getvalue())
    engine = Engine(made)
    for example in graph.examples:
        check(engine, module, example)
    return made


def check(engine: Engine, module: nn.Module, example: Sequence[Tensor]) -> None:
    """Raises `ModelError` when the graph's outputs for an example are not the module's."""
    with torch.inference_mode():
        answer = module(*example)
    wanted = [each.numpy() for each in ([answer] if isinstance(answer, Tensor) else answer)]
    found = engine.run([each.numpy() for each in example])
    error = max(map(difference, found, wanted)) if len(found) == len(wanted) else float("inf")
    if not error < AGREES:
        shapes = ", ".join(str(tuple(each.shape)) for each in example)
        raise ModelError(
            f"the exported graph differs from the net by {error:.1e} of its largest output, for inputs of shape "
            f"{shapes}; nothing is kept."
        )


def difference(found: Array, wanted: Array) -> float:
    """The largest error relative to the largest number that is wanted; infinite where shapes differ.

    >>> difference(np.array([1.0, 4.5]), np.array([1.0, 4.0])), difference(np.zeros(0), np.zeros(0))
    (0.125, 0.0)
    """
    if found.shape != wanted.shape:
        return float("inf")
    error = float(np.abs(found - wanted).max(initial=0.0))
    return error / float(np.abs(wanted).max()) if error else error


def noted(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """The graph with texts by key in its metadata (ONNX `metadata_props`)."""
    if not metadata:
        return graph
    opened = onnx.load_from_string(graph)
    onnx.helper.set_model_props(opened, dict(metadata))
    return opened.SerializeToString()


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
