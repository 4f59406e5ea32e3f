"""An ONNX file, or an ONNX model in memory. Weights in files beside it are taken in."""

from pathlib import Path
from typing import Any

import onnx

from airserve.learn.importers import Foreign, Given, stem
from airserve.model import Engine

SUFFIXES = (".onnx",)
PACKAGE = "onnx"


def takes(path: str) -> bool:
    return path.endswith(SUFFIXES)


def read(source: Any, given: Given) -> Foreign:
    """The graph as it is. Raises `ModelError` when onnxruntime does not open it."""
    if isinstance(source, str | Path):
        Engine(Path(source))
        graph, name = onnx.load(source).SerializeToString(), Path(source).stem
    else:
        graph, name = source.SerializeToString(), source.graph.name or stem(source)
    return Foreign(name, graph)
