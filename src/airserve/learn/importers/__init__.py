"""Open set: an importer reads the models of one other tool as ONNX; `takes`, `PACKAGE`, `read(source, given)`.

`takes(path)` says whether a path is for it, `PACKAGE` whose objects are, and `read` gives a `Foreign`. None of them is
imported before it is asked for, and the package of the tool only by `read`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from airserve.catalog import Catalog
from airserve.model import Array, Engine, ModelError

Answer = Callable[[Sequence[Array]], Sequence[Array]]

CLOSE = 1e-3  # the graph's largest error, relative to the source's largest output
ROWS = 8  # of the examples that are asked
DRAWN = 32  # rows that are drawn where nobody gives an example

importers = Catalog("importer", "airserve.learn.importers")


@dataclass(frozen=True)
class Given:
    """What comes with a source: rows that it takes, one array for each input, and whether its code may run."""

    example: Any = None  # an array, a tuple of arrays, or a table with named columns
    trust: bool = False


@dataclass(frozen=True)
class Foreign:
    """A model of another tool as ONNX, and the model itself to hold it to.

    `examples` are rows as the graph takes them, shape (n, ...), one array for each input, empty where there are none.
    `answer` is what the source says to such rows; None where the graph is the source.
    """

    name: str
    graph: bytes
    examples: tuple[Array, ...] = ()
    answer: Answer | None = None
    drawn: bool = False  # whether the examples are drawn and nobody's
    lineage: Mapping[str, Any] = field(default_factory=dict)


def which(source: Any) -> str | None:
    """The importer's name of a path or an object, None where there is none."""
    if isinstance(source, str | Path):
        return next((name for name, module in importers.items() if module.takes(str(source))), None)
    packages = [part.__module__.partition(".")[0] for part in type(source).__mro__]
    # A Keras layer is a torch module too where torch computes for it: the first package in its line of classes wins.
    known = {module.PACKAGE: name for name, module in importers.items()}
    return next((known[package] for package in packages if package in known), None)


def stem(source: Any) -> str:
    """A name for a path or an object.

    >>> stem("models/spam.skops"), stem(ModelError("no"))
    ('spam', 'modelerror')
    """
    return Path(source).stem if isinstance(source, str | Path) else type(source).__name__.lower()


def sentence(error: BaseException) -> str:
    """The first line of another tool's error, short."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(" .:")


def absent(package: str, what: str) -> ModelError:
    """The error for a package that is not installed."""
    return ModelError(f"{what} needs the package {package}: `pip install 'airserve[import]'`.")


def refuse_code(path: Path, instead: str) -> ModelError:
    """The error for a file that runs code when it is opened."""
    return ModelError(
        f"{path.name} is a pickle, and opening one runs whatever code its maker put in; {instead}, or give --trust "
        "when you know who made it."
    )


def agree(foreign: Foreign, engine: Engine) -> None:
    """Raises `ModelError` unless the graph answers as its source: rows together and alone, on every free axis others.

    Shapes that the source itself refuses are left out, for nobody will ask them.
    """
    if foreign.answer is None or not foreign.examples:
        return
    few = [np.ascontiguousarray(array[:ROWS]) for array in foreign.examples]
    for rows in (few, [array[:1] for array in few], *others(few, engine)):
        try:
            wanted = [np.asarray(array) for array in foreign.answer(rows)]
        except Exception as error:
            if rows is few:
                raise ModelError(f"{foreign.name} does not take its own example: {sentence(error)}.") from None
            continue
        shapes = ", ".join(str(list(array.shape)) for array in rows)
        try:
            found = engine.run(rows)
        except Exception as error:  # onnxruntime raises classes of its own, of no common kind
            raise ModelError(f"the graph of {foreign.name} fails on inputs of {shapes}: {sentence(error)}.") from None
        worst = max((apart(one, other) for one, other in zip(found, wanted, strict=True)), default=0.0)
        if not worst < CLOSE:
            raise ModelError(
                f"the graph of {foreign.name} differs from its source by {worst:.1e} of the largest output, for inputs "
                f"of {shapes}; nothing is kept."
            )


def others(rows: Sequence[Array], engine: Engine) -> Iterator[list[Array]]:
    """The same rows with each free axis but the first longer by three and half as long, all inputs alike."""
    free = {axis for tensor in engine.signature.inputs for axis, size in enumerate(tensor.shape) if axis and size < 0}
    for axis in sorted(free):
        takes = [len(t.shape) > axis and t.shape[axis] < 0 for t in engine.signature.inputs]
        sizes = {array.shape[axis] for array, wide in zip(rows, takes, strict=True) if wide}
        for size in {max(sizes) + 3, max(max(sizes) // 2, 1)}:
            places = np.arange(size)
            yield [
                np.ascontiguousarray(array.take(places % array.shape[axis], axis)) if wide else array
                for array, wide in zip(rows, takes, strict=True)
            ]


def apart(found: Array, wanted: Array) -> float:
    """The largest error relative to the largest number wanted; infinite for other shapes, or words that differ.

    >>> apart(np.array([1.0, 2.0]), np.array([1.0, 2.5])), apart(np.array(["a"]), np.array(["b"]))
    (0.2, inf)
    """
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind not in "fiub":
        return 0.0 if (found.astype(str) == wanted.astype(str)).all() else float("inf")
    if not wanted.size:
        return 0.0
    scale = max(float(np.abs(wanted.astype(np.float64)).max()), 1e-6)
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() / scale)
