"""A Keras 3 model, in memory or in a .keras file, with torch computing for it."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from airserve.learn.importers import DRAWN, Foreign, Given, absent, sentence, stem
from airserve.learn.importers.torch import arrays, traced
from airserve.model import Array, ModelError

SUFFIXES = (".keras", ".h5", ".hdf5")
PACKAGE = "keras"
TRACE = (False,)  # the one exporter that follows Keras, whose layers are unrolled in Python
CHECKED = (3, 11, 3)  # the first Keras that asks before code in an .h5 file runs: CVE-2025-9905
LENGTH = 8  # of a free axis in rows that are drawn


def takes(path: str) -> bool:
    return path.endswith(SUFFIXES)


def read(source: Any, given: Given) -> Foreign:
    """A model with its axes free as its inputs say, traced in torch. Raises `ModelError` in one sentence.

    Recurrent layers are unrolled in a trace and hold for one length, so a free one is kept only where the graph
    agrees at others; else it is that of the example, which must then be given.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise absent(str(error.name), "a Keras model") from None
    if keras.backend.backend() != "torch":
        raise ModelError(
            f"Keras computes with {keras.backend.backend()} here, and its graph is taken from torch; set "
            "KERAS_BACKEND=torch before Keras is imported."
        )
    model, name = (
        (opened(Path(source), given), stem(source)) if isinstance(source, str | Path) else (source, source.name)
    )
    specs = model.inputs if isinstance(model, keras.Model) and model.built else []
    if not specs and given.example is None:
        raise ModelError(f"{name} does not say what it takes; give --samples FILE.npz, or build it with keras.Input.")
    model.eval()
    examples = drawn(model, specs) if given.example is None else arrays(given.example, name)
    free = sorted({k for spec in specs for k, size in enumerate(spec.shape) if k and size is None})
    names = [spec.name.replace(":0", "") for spec in specs] if len(specs) == len(examples) > 1 else ["input"]
    facts = {"keras": keras.__version__, "layers": len(getattr(model, "layers", ()))}
    try:
        foreign = traced(model, examples, name, names, free, TRACE, **facts)
    except ModelError as error:
        if not free:
            raise
        if given.example is None:
            raise ModelError(
                f"{sentence(error)}; its layers hold for one length alone: give --samples FILE.npz of that length, or "
                "build it with a fixed one."
            ) from None
        foreign = traced(model, examples, name, names, (), TRACE, **facts)
    return Foreign(
        foreign.name, foreign.graph, foreign.examples, foreign.answer, given.example is None, foreign.lineage
    )


def opened(path: Path, given: Given) -> Any:
    """The model in a file; layers that hold code only with trust."""
    import keras

    if not path.is_file():
        raise ModelError(f"{path} is not there.")
    if path.suffix != ".keras" and not given.trust and version(keras.__version__) < CHECKED:
        raise ModelError(
            f"Keras {keras.__version__} runs whatever code the maker of {path.name} put in, without asking; install "
            f"keras>={'.'.join(map(str, CHECKED))}, or give --trust when you know who made it."
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=not given.trust)
    except Exception as error:
        unsafe = "safe_mode" in str(error) or "unsafe" in str(error).lower() or "lambda" in str(error).lower()
        if unsafe and not given.trust:
            raise ModelError(
                f"{path.name} holds code of its maker's, a Lambda layer, which would run here; give --trust when you "
                "know who made it."
            ) from None
        raise ModelError(f"{path.name} cannot be opened as a Keras model: {sentence(error)}.") from None


def version(text: str) -> tuple[int, ...]:
    """
    >>> version("3.9.2"), version("3.12.0rc1") > (3, 11, 3)
    ((3, 9, 2), True)
    """
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def drawn(model: Any, specs: Any) -> tuple[Array, ...]:
    """Rows for the inputs of a model: ids below the smallest embedding's size, else numbers of unit variance."""
    rng = np.random.default_rng(0)
    most = min((layer.input_dim for layer in layers(model) if type(layer).__name__ == "Embedding"), default=2)
    found = []
    for spec in specs:
        shape, kind = (DRAWN, *(LENGTH if size is None else size for size in spec.shape[1:])), np.dtype(spec.dtype)
        embeds = kind.kind == "f" and most > 2 and len(specs) == 1 and type(first(model)).__name__ == "Embedding"
        whole = kind.kind in "iub" or embeds
        found.append((rng.integers(0, most, shape) if whole else rng.normal(size=shape)).astype(kind))
    return tuple(found)


def first(model: Any) -> Any:
    """The first layer that computes."""
    return next((layer for layer in model.layers if type(layer).__name__ != "InputLayer"), None)


def layers(model: Any) -> Iterator[Any]:
    """Every layer, those within layers too."""
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from layers(layer)
