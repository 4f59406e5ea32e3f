"""Importing: anyone's model, or a net of ours with its published weights, as a Model in the registry.

`learn/importers` has the kinds. An ONNX file loads neither torch nor the tool that it came from.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from airserve.answers import judge
from airserve.catalog import nets, tasks
from airserve.errors import Unknown, UserError
from airserve.learn.importers import Given, agree, importers, which
from airserve.learn.scoring import read
from airserve.model import Array, Engine, Model, ModelError
from airserve.registry import Registry, check_served
from airserve.samples import Samples, load_samples

RECIPE = 1  # raise it when a change of this file or of a net would import another Model
KINDS = (
    "an .onnx file, a .keras file, a .skops file of scikit-learn, FILE.py:FUNCTION that returns a torch module and an "
    "example, a .pt2 program, or a folder with config.json and model.safetensors"
)
GAPS = {
    "Imputer",
    "IsNaN",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
}  # operators for which NaN is a value
PRETRAINED = {"efficientnet-lite0": "photos", "mtcnn": "photos"}  # net: the task that gives its samples


def import_model(
    source: Any,
    name: str | None = None,
    samples: Path | Samples | None = None,
    *,
    registry: Registry,
    example: Any = None,
    trust: bool = False,
) -> Model:
    """Anyone's model as a Model: a path or an object that an importer reads, or a net with published weights.

    `example` is rows that it takes, an array or one for each input; without it the samples' inputs are, and where
    there is neither, rows are drawn. The graph must answer as its source, at other shapes too. With `trust` a file may
    run its maker's code. A known Model is taken as it is. Raises `UserError` in one sentence.
    """
    if isinstance(source, str) and source in PRETRAINED:
        if samples is not None:
            raise ModelError(f"{source} brings its own samples, {PRETRAINED[source]}; leave --samples out.")
        return import_pretrained(source, name=name, registry=registry)
    if (kind := which(source)) is None:
        raise unknown(source)
    held = load_samples(samples) if isinstance(samples, Path) else samples
    if example is None and held is not None:
        example = held.inputs
    foreign = importers[kind].read(source, Given(example, trust))
    engine = Engine(foreign.graph)
    check_served(foreign.name, engine.signature)
    agree(foreign, engine)
    if held is None and len(foreign.examples) == 1 and foreign.examples[0].dtype != object:
        held = Samples(foreign.examples[0])
    graph = onnx.load_from_string(foreign.graph)
    lineage = {
        "source": Path(source).name if isinstance(source, str | Path) else type(source).__name__,
        "kind": kind,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import},
        "data": None if held is None else fingerprint(held),
        **foreign.lineage,
        **({"example": "drawn"} if foreign.drawn else {}),
    }
    gaps = any(node.op_type in GAPS for node in graph.graph.node)
    scores = {} if held is None else check(engine, foreign.name, held, gaps)
    made = samples if isinstance(samples, Path) else held
    return registry.register(name or usable(foreign.name), foreign.graph, samples=made, scores=scores, lineage=lineage)


def served(source: str) -> str:
    """What a server is to be given for a source: another tool's model is imported, and named as the registry does.

    An .onnx file, a folder that holds one, and the name of a Model stay as they are. Raises `UserError`.
    """
    kind = which(source)
    if kind in (None, "onnx") or (Path(source) / "model.onnx").is_file():
        return source
    model = import_model(source, registry=Registry())
    return f"{model.name}@{model.version}"


def unknown(source: Any) -> UserError:
    """The error for what no importer reads, with what would be right."""
    if not isinstance(source, str | Path):
        packages = ", ".join(sorted(module.PACKAGE for module in importers.values()))
        return ModelError(f"a {type(source).__name__} cannot be imported; an object must be of {packages}.")
    if Path(source).is_dir():
        return ModelError(f"{source} has no config.json; a folder is read in Hugging Face's layout alone.")
    if Path(source).is_file() or "." in Path(source).name:
        return ModelError(f"{source} is of no kind that is read: {KINDS}.")
    return Unknown("net with published weights", str(source), sorted(PRETRAINED), f"Give one of them, or {KINDS}.")


def usable(name: str) -> str:
    """A name as the registry takes it.

    >>> usable("my net (2)")
    'my-net-2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def fingerprint(samples: Samples) -> str:
    """SHA-256 over inputs and labels."""
    digest = hashlib.sha256()
    for array in (samples.inputs, samples.labels):
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check(engine: Engine, name: str, samples: Samples, gaps: bool = False) -> dict[str, float]:
    """The score of a graph on samples that it can run; `gaps`: NaN may be in them.

    Raises `ModelError` when they are not for this graph.
    """
    signature = engine.signature
    if len(signature.inputs) != 1:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise ModelError(f"{name} has {len(signature.inputs)} inputs ({names}); samples are for models with one.")
    tensor, rows = signature.inputs[0], samples.inputs
    fits = len(tensor.shape) == rows.ndim and all(
        wanted in (-1, given) for wanted, given in zip(tensor.shape[1:], rows.shape[1:], strict=True)
    )
    if str(rows.dtype) != tensor.dtype or not fits:
        raise ModelError(
            f"the samples are {rows.dtype} of shape {list(rows.shape)}, but {name} takes "
            f"{tensor.dtype} of shape {list(tensor.shape)} as {tensor.name!r}."
        )
    if tensor.shape[:1] != (-1,):
        raise ModelError(f"{name} takes batches of {tensor.shape[0]} only; export it again with a free batch axis.")
    if samples.labels is not None and len(samples.labels) != len(rows):
        raise ModelError(f"the samples have {len(rows)} inputs but {len(samples.labels)} labels.")
    if samples.labels is not None and (samples.labels.size != len(rows) or samples.labels.dtype.kind not in "biuf"):
        raise ModelError(
            f"the labels are {samples.labels.dtype} of shape {list(samples.labels.shape)}; give each row the number of "
            "its class, which labels.argmax(1) is where they are one-hot, or one number."
        )
    if not gaps and rows.dtype.kind == "f" and (row := first(np.isnan(rows))) is not None:
        raise ModelError(f"row {row} of the samples, counted from 0, holds NaN; leave it out, or fill the gap.")
    held = samples.held()
    if not len(held.inputs):
        raise ModelError(f"all {len(rows)} samples are for calibration; some must be held to score on.")
    try:
        together, alone = engine.run([rows[:2]])[0], engine.run([rows[:1]])[0]
    except Exception as error:  # onnxruntime raises classes of its own, of no common kind
        raise ModelError(f"{name} does not run on its samples: {str(error).strip().splitlines()[0][:160]}.") from None
    if not isinstance(together, np.ndarray) or together.dtype.kind not in "biuf":
        raise ModelError(
            f"{name} answers {signature.outputs[0].name!r} first, which is {signature.outputs[0].dtype}, and samples "
            "score numbers; export it with its scores first, or leave the samples out."
        )
    if together.shape[:1] != rows[:2].shape[:1] or not np.allclose(together[:1], alone, rtol=1e-3, atol=1e-4):
        raise ModelError(f"{name} answers a row differently in a batch of two; its batch axis is not free.")
    if held.labels is None:
        return {"agreement": 1.0}
    if (classes := together[0].size) > 1:
        labels = np.asarray(samples.labels, np.float64).reshape(-1)
        if (row := first(~np.isin(labels, np.arange(classes)))) is not None:
            raise ModelError(
                f"the label of row {row}, counted from 0, is {labels[row]:g}, but {name} answers {classes} numbers a "
                f"row, so its classes are 0 to {classes - 1}."
            )
    metric, score = judge(read(engine, held.inputs), held.labels, labelled=True)
    return {metric: score}


def first(wrong: Array) -> int | None:
    """The first row in which something is wrong."""
    rows = wrong.reshape(len(wrong), -1).any(axis=1)
    return int(rows.argmax()) if rows.any() else None


def import_pretrained(net: str, *, registry: Registry, name: str | None = None, fresh: bool = False) -> Model:
    """A net with its published weights, behind its sensor. The score is `agreement` with itself: 1 by definition.

    There are no labels: its samples are crops of real photographs, as JPEG. A net of several parts becomes several
    Models, the first of which is given. A known Model is taken unless `fresh`. Raises `UserError` when a package is
    absent.
    """
    if net not in PRETRAINED:
        raise Unknown("net with published weights", net, sorted(PRETRAINED))
    samples = tasks[PRETRAINED[net]].samples()
    data = hashlib.sha256(b"".join(samples.encoded or ())).hexdigest()
    recipe = hashlib.sha256(json.dumps(["import", RECIPE, net, data]).encode()).hexdigest()
    known = registry.trained(recipe)
    if known and known.name.removesuffix("-proposal") == (name or net) and not fresh:
        return known

    from airserve.learn.exporting import export, export_graph

    if net == "mtcnn":
        from airserve.learn import mtcnn
        from airserve.learn.training import register

        states = mtcnn.weights()
        files = {part: export_graph(graph) for part, graph in mtcnn.graphs(states).items()}
        lineage = {
            "net": net,
            "weights": mtcnn.SOURCE,
            "task": PRETRAINED[net],
            "data": data,
            "recipe": recipe,
            "parameters": sum(weight.numel() for state in states.values() for weight in state.values()),
        }
        return register(name or net, files, samples, {"agreement": 1.0}, lineage, registry)
    module = nets[net]
    learned = module.build(module.Config())
    learned.load_state_dict(module.weights(), strict=True)
    return registry.register(
        name or net,
        export(learned, module.MEAN, module.SCALE, samples.inputs),
        samples=samples,
        scores={"agreement": 1.0},
        lineage={
            "net": net,
            "weights": module.SOURCE,
            "task": PRETRAINED[net],
            "data": data,
            "recipe": recipe,
            "parameters": sum(weight.numel() for weight in learned.parameters()),
        },
    )
