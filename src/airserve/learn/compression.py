"""Compression: a variant of a Model, with what it costs in score and what it gains in time, measured."""

import hashlib
import json
import time
from importlib.metadata import version
from math import prod

from airserve.answers import judge
from airserve.catalog import compressors
from airserve.learn.scoring import paired_ms, read
from airserve.model import Engine, Model, ModelError
from airserve.progress import bar
from airserve.registry import Registry
from airserve.samples import load_samples

RECIPE = 2  # raise it when a change of this file or of a compressor makes another variant


def compress(model: Model, how: str, *, registry: Registry, fresh: bool = False, progress: bool = True) -> Model:
    """The variant that a compressor makes of a Model, under the same name and version; a known one unless `fresh`.

    It sees the calibration rows only; the score is on the held rows, by a metric of `answers.judge`: against labels
    where they are known, otherwise against the parent's answers. The lineage has the parent's score on the same rows
    (`before`) and CPU milliseconds of both at batch 1. Raises `UserError` when the Model cannot be compressed.
    """
    make = compressors[how]
    if model.variant != "fp32":
        raise ModelError(f"{model.reference} is itself a variant; compress {model.name}@{model.version}.")
    if model.lineage.get("classes") == [] and prod(model.signature.outputs[0].shape[1:]) != 1:
        raise ModelError(
            f"{model.reference} answers several numbers, and a variant is judged by one; it runs as it is."
        )
    if model.samples_path is None:
        raise ModelError(
            f"{model.reference} has no samples, so {how} can be neither calibrated nor scored; "
            f"import it again with `--samples FILE.npz`."
        )
    settings = [RECIPE, how, model.digest, model.samples_path.stem, version("onnxruntime")]
    recipe = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    for known in registry.variants(model):
        if known.lineage.get("recipe") == recipe and not fresh:
            return known

    if not model.path.is_file():
        raise ModelError(
            f"the graph of {model.reference} is gone: there is no file {model.path}; make the Model again."
        )
    samples = load_samples(model.samples_path)
    held = samples.held()
    if not samples.calibration or not len(held.inputs):
        raise ModelError(
            f"the samples of {model.reference} have {samples.calibration} rows to calibrate and {len(held.inputs)} "
            "held ones; both are needed: import it again with more samples, or with another number as `calibration`."
        )
    work = 3 * len(held.inputs)  # calibration counts as a third
    with bar(f"{how}: calibrating", work, wanted=progress, stays=True) as done:
        started_s = time.process_time()
        small = make(model.path, samples.inputs[: samples.calibration])
        cpu_s = time.process_time() - started_s
        parent, child = Engine(model.path), Engine(small)
        done.by(len(held.inputs), f"{how}: scoring")
        theirs = read(parent, held.inputs, done.by)
        ours = read(child, held.inputs, done.by)
        parent_ms, child_ms = paired_ms(parent, child, held.inputs)
    labelled = held.labels is not None
    wanted = theirs if held.labels is None else held.labels
    (metric, score), (_, before) = (judge(each, wanted, labelled) for each in (ours, theirs))
    return registry.register(
        model.name,
        small,
        variant=how,
        version=model.version,
        samples=model.samples_path,
        scores={metric: score},
        lineage={
            "how": how,
            "parent": model.reference,
            "parent_digest": model.digest,
            "recipe": recipe,
            "calibration": samples.calibration,
            "scored": len(held.inputs),
            "before": before,
            "cpu_ms": {"fp32": round(parent_ms, 4), how: round(child_ms, 4)},
            "kb": {"fp32": round(model.path.stat().st_size / 1e3, 1), how: round(len(small) / 1e3, 1)},
            "cpu_s": round(cpu_s, 2),
            "onnxruntime": version("onnxruntime"),
        },
    )
