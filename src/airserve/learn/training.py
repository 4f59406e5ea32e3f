"""Training: from a net and a task to a Model, in seven steps that follow in the order in which they run.

preprocess and build (preparing.py), initialise, fit (the training itself), validate and test (fitting.py), export
(exporting.py, for a net that comes with its weights is exported too); `train` calls them. A net whose training
differs says so in its own file (nets/__init__.py): by a `loss` of its outputs, or by an `objective` of inputs and
labels.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from airserve.catalog import tasks
from airserve.errors import UserError
from airserve.learn.metrics import recalls
from airserve.learn.scoring import read
from airserve.learn.tasks import Baseline, Data
from airserve.model import Engine, Model, ModelError
from airserve.registry import Registry
from airserve.samples import Samples

try:
    import torch

    from airserve.learn.checkpoints import Checkpoint
    from airserve.learn.computing import check_threads, choose_precision, choose_threads, launch
    from airserve.learn.curves import draw as draw_curve
    from airserve.learn.distributing import check_devices, spread
    from airserve.learn.exporting import export_all
    from airserve.learn.fitting import learn
    from airserve.learn.preparing import build, check_options, load_task, preprocess
    from airserve.learn.recipe import Options, digest, read_net, unbalanced
except ModuleNotFoundError as error:
    raise UserError(f"training needs the package {error.name}: `pip install 'airserve[learn]'`.") from None


def train(
    net: str,
    task: str,
    *,
    seed: int = 0,
    registry: Registry,
    fresh: bool = False,
    progress: bool = True,
    threads: int | str = 1,
    devices: int = 1,
) -> Model:
    """The Model of a net for a task: "resnet8" or with settings, "resnet8,width=32,epochs=8", and "fashion-mnist".

    A net of several parts becomes as many Models, "vae-fashion-encoder"; the first is returned, its lineage names all.
    A Model whose settings, data and seed are those of an earlier one comes from the registry, unless `fresh`. A
    training that was killed goes on after its last whole epoch, to the same weights; play and pre-training begin anew.
    `threads` compute a step, "auto": as many as are fastest, which is measured; `devices` are processes, of one
    thread each, among which each batch is divided.
    The test split is touched once, after training. Raises `UserError` for a name, a parameter or data that is not.
    """
    name, config, options = read_net(net)
    check_threads(threads)  # these two even where the Model is known
    check_devices(devices, config.batch)
    data = load_task(task)
    recipe = digest(name, config, options, task, data.fingerprint, seed)
    if not fresh and (known := registry.trained(recipe)):
        return known

    checkpoint = Checkpoint(registry.home / "checkpoints" / f"{recipe}.pt", recipe)
    if fresh:
        checkpoint.remove()
    before, sheet = torch.get_num_threads(), None
    torch.set_num_threads(1)  # small nets: two OpenMP threads on a busy machine cost up to thirty times the time
    try:
        with torch.random.fork_rng():
            prepared = preprocess(data)
            module = build(name, config, prepared, data.answer)
            check_options(name, task, module, prepared, options)
            precision = choose_precision(module, options)
            games = tasks[task].environment if data.answer == "move" else None
            if games and (devices > 1 or threads == "auto"):
                raise ModelError(f"{task} is played in one process on one thread; leave devices and threads out.")
            beaten = baseline(task, data, registry)  # before the work, so that what it lacks is said then
            chosen, measured_ms = choose_threads(1 if devices > 1 else threads, net, prepared, data.answer)
            if devices > 1:
                learnt = spread(devices, precision, net, task, seed, progress, registry.home, module)
            else:
                torch.set_num_threads(chosen)
                fabric = launch(precision)
                learnt = learn(fabric, module, config, prepared, seed, options, progress, checkpoint, games)
            graphs = export_all(
                module,
                prepared.mean,
                prepared.std,
                data.test.inputs,
                data.output,
                len(data.ids) == 1,
                data.metadata,
            )
            scores, curve = learnt.scores, learnt.curve
            if not scores:
                parts = {part: Engine(graph) for part, graph in graphs.items()}
                scores = tasks[task].assess(parts, data, registry)
                if hasattr(tasks[task], "sheet"):
                    sheet = registry.store(tasks[task].sheet(parts, data), ".png")
    finally:
        torch.set_num_threads(before)
    words = registry.store("\n".join(data.words).encode(), ".txt") if data.words else None
    picture = registry.store(draw_curve(f"{name} on {task}", curve, data.metric.name).encode(), ".svg")
    lineage = {
        "net": name,
        "settings": {**asdict(config), **options.stated()},
        "task": task,
        "classes": data.classes if data.answer in ("row", "move") else (),
        "seed": seed,
        "data": data.fingerprint,
        "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "recipe": recipe,
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "precision": precision,
        **({"threads": chosen} if chosen > 1 or measured_ms else {}),
        **({"step_ms": measured_ms} if measured_ms else {}),
        **({"devices": devices} if devices > 1 else {}),
        "torch": torch.__version__,
        "cpu_s": round(curve[-1]["cpu_s"], 2),
        **({"pretrained": learnt.pretrained} if learnt.pretrained else {}),
        "epochs": len(curve),
        "curve": curve,
        "picture": f"{picture.parent.name}/{picture.name}",
        **({"sheet": f"{sheet.parent.name}/{sheet.name}"} if sheet else {}),
        **recall(name, config, options, task, data, seed, graphs, registry),
        "baseline": asdict(beaten),
        **({"words": f"{words.parent.name}/{words.name}"} if words else {}),
    }
    model = register(f"{name}-{data.short}", graphs, data.samples, scores, lineage, registry)
    checkpoint.remove()
    return model


def recall(
    name: str,
    config: Any,
    options: Options,
    task: str,
    data: Data,
    seed: int,
    graphs: Mapping[str, bytes],
    registry: Registry,
) -> dict[str, Any]:
    """Of each class the share of the test split's rows that the graph finds; nothing where answers are no classes.

    For a net that was trained for rare classes' sake also that of its twin without, where the registry has it.
    """
    if not data.classes or data.answer != "row" or "" not in graphs:
        return {}
    found = recalls(read(Engine(graphs[""]), data.test.inputs), data.test.labels, len(data.classes))
    stated: dict[str, Any] = {"recall": dict(zip(data.classes, found, strict=True))}
    if (plainly := unbalanced(options)) != options:
        twin = registry.trained(digest(name, config, plainly, task, data.fingerprint, seed))
        stated["recall_without"] = twin.lineage.get("recall") if twin else None
    return stated


def register(
    name: str,
    graphs: Mapping[str, bytes],
    samples: Samples | None,
    scores: Mapping[str, float],
    lineage: Mapping[str, Any],
    registry: Registry,
) -> Model:
    """The Model of a net's first part, registered last: it alone states the recipe, so that a known one is whole.

    The score is that of all parts together; the samples are inputs of the first.
    """
    names = {part: f"{name}-{part}" if part else name for part in graphs}
    first, *others = graphs
    known = {key: value for key, value in lineage.items() if key != "recipe"}
    parts = {
        part: registry.register(
            names[part], graphs[part], scores=scores, lineage={**known, "first_part": names[first]}
        ).reference
        for part in others
    }
    stated = {**lineage, "parts": parts} if parts else lineage
    return registry.register(names[first], graphs[first], samples=samples, scores=scores, lineage=stated)


def baseline(task: str, data: Data, registry: Registry) -> Baseline:
    """What a Model of this task must beat on the test split; found once and remembered."""
    key = f"baseline {task} {data.fingerprint}"
    if known := registry.kept(key):
        return Baseline(**known)
    module = tasks[task]
    found: Baseline = (
        module.baseline(data, module.judge(registry)) if hasattr(module, "judge") else module.baseline(data)
    )
    registry.keep(key, asdict(found))
    return found
