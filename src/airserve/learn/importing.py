"""Importing: anyone's ONNX model, or a net of ours with its published weights, as a Model in the registry.

Only a net with published weights loads torch.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx

from airserve.catalog import nets, tasks
from airserve.errors import Unknown
from airserve.learn.scoring import agreement, top
from airserve.model import Engine, Model, ModelError, Samples, load_samples
from airserve.registry import Registry

RECIPE = 1  # raise it when a change of this file or of a net would import another Model
PRETRAINED = {"efficientnet-lite0": "photos"}  # net: the task that gives its samples


def import_model(
    source: str, name: str | None = None, samples: Path | None = None, *, registry: Registry, progress: bool = True
) -> Model:
    """An .onnx file, or the name of a net that comes with weights. Raises `UserError` when it is neither."""
    if source.endswith(".onnx") or Path(source).is_file():
        return import_onnx(Path(source), name, samples, registry=registry)
    if source not in PRETRAINED:
        what_next = "Give one of them, or the path of an .onnx file."
        raise Unknown("net with published weights", source, sorted(PRETRAINED), what_next)
    if samples is not None:
        raise ModelError(f"{source} brings its own samples, {PRETRAINED[source]}; leave --samples out.")
    return import_pretrained(source, name=name, registry=registry)


def import_onnx(path: Path, name: str | None, samples: Path | None, *, registry: Registry) -> Model:
    """Anyone's ONNX file under a name, by default the file's. Weights in files beside it are taken in.

    With samples the graph is run on two of their rows, and on one, before anything is registered. With labels for each
    row its score is `accuracy` on the held rows; without, `agreement` with itself: 1 by definition, and the name of the
    score of its variants. Without samples it has no score. Raises `ModelError` in one sentence.
    """
    Engine(path)
    graph = onnx.load(path).SerializeToString()
    data = None if samples is None else load_samples(samples)
    scores = {} if data is None else check(Engine(graph), path.name, data)
    lineage = {
        "source": path.name,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in onnx.load_from_string(graph).opset_import},
        "data": None if samples is None else hashlib.sha256(samples.read_bytes()).hexdigest(),
    }
    return registry.register(name or path.stem, graph, samples=samples, scores=scores, lineage=lineage)


def check(engine: Engine, name: str, samples: Samples) -> dict[str, float]:
    """The score of a graph on samples that it can run. Raises `ModelError` when they are not for this graph."""
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
    held = samples.held()
    if not len(held.inputs):
        raise ModelError(f"all {len(rows)} samples are for calibration; some must be held to score on.")
    try:
        together, alone = engine.run([rows[:2]])[0], engine.run([rows[:1]])[0]
    except Exception as error:  # onnxruntime raises classes of its own, of no common kind
        raise ModelError(f"{name} does not run on its samples: {str(error).strip().splitlines()[0][:160]}.") from None
    if together.shape[:1] != rows[:2].shape[:1] or not np.allclose(together[:1], alone, rtol=1e-3, atol=1e-4):
        raise ModelError(f"{name} answers a row differently in a batch of two; its batch axis is not free.")
    if held.labels is None:
        return {"agreement": 1.0}
    return {"accuracy": agreement(top(engine, held.inputs), held.labels)}


def import_pretrained(net: str, *, registry: Registry, name: str | None = None, fresh: bool = False) -> Model:
    """A net with its published weights, behind its sensor. The score is `agreement` with itself: 1 by definition.

    There are no labels: its samples are crops of real photographs, as JPEG. A known Model is taken unless `fresh`.
    Raises `UserError` when a package is absent.
    """
    if net not in PRETRAINED:
        raise Unknown("net with published weights", net, sorted(PRETRAINED))
    samples = tasks[PRETRAINED[net]].samples()
    data = hashlib.sha256(b"".join(samples.encoded or ())).hexdigest()
    recipe = hashlib.sha256(json.dumps(["import", RECIPE, net, data]).encode()).hexdigest()
    known = registry.trained(recipe)
    if known and known.name == (name or net) and not fresh:
        return known

    from airserve.learn.exporting import export

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
