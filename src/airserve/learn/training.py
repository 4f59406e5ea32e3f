"""Training: from a net and a task to a Model, in seven steps that follow in the order in which they run.

preprocess, build, initialise, fit (the training itself), validate, test, export; `train` calls them. The last stands
in exporting.py, for a net that comes with its weights is exported too. A net whose training differs says so in its
own file (nets/__init__.py): by a `loss` of its outputs, or by an `objective` of inputs and labels.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from airserve.catalog import nets, tasks
from airserve.errors import UserError
from airserve.learn.metrics import Metric, recalls
from airserve.learn.nets import ANSWERS, Form
from airserve.learn.progress import bar
from airserve.learn.scoring import top
from airserve.learn.tasks import Baseline, Data, Split, TaskError
from airserve.model import Array, Engine, Model, ModelError, Samples
from airserve.registry import Registry

try:
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from airserve.learn.balancing import draw, rare, vary
    from airserve.learn.checkpoints import Checkpoint
    from airserve.learn.curves import draw as draw_curve
    from airserve.learn.distributing import spread
    from airserve.learn.exporting import export_all
    from airserve.learn.losses import LOSSES, Loss, class_weights, cross_entropy
    from airserve.learn.optimizers import optimizer
    from airserve.learn.recipe import Options, digest, read_net, unbalanced
    from airserve.learn.reinforcement import play_and_learn
    from airserve.learn.schedules import OneCycle
    from airserve.learn.threads import fastest
except ModuleNotFoundError as error:
    raise UserError(f"training needs the package {error.name}: `pip install 'airserve[learn]'`.") from None

PATIENCE = 5  # epochs without a better validation loss after which training stops
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
PLAIN = Options()  # no option
LOOK = 20  # steps after which the loss is looked at


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
    training that was killed goes on after its last whole epoch, to the same weights.
    `threads` compute a step, "auto": as many as are fastest, which is measured; `devices` are processes among which
    each batch is divided.
    The test split is touched once, after training. Raises `UserError` for a name, a parameter or data that is not.
    """
    name, config, options = read_net(net)
    data = load_task(task)
    recipe = digest(name, config, options, task, data.fingerprint, seed)
    if not fresh and (known := registry.trained(recipe)):
        return known

    checkpoint = Checkpoint(registry.home / "checkpoints" / f"{recipe}.pt", recipe)
    if fresh:
        checkpoint.remove()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small nets: two OpenMP threads on a busy machine cost up to thirty times the time
    try:
        with torch.random.fork_rng():
            prepared = preprocess(data)
            module = build(name, config, prepared, data.answer)
            precision = choose_precision(module, options)
            check_devices(devices, config.batch)
            games = tasks[task].environment if data.answer == "move" else None
            if games and (devices > 1 or threads == "auto"):
                raise ModelError(f"{task} is played in one process on one thread; leave devices and threads out.")
            chosen, measured_ms = choose_threads(threads, net, prepared, data.answer)
            if devices > 1:
                curve, scores = spread(devices, precision, net, task, seed, progress, registry.home, module)
            else:
                torch.set_num_threads(chosen)
                fabric = launch(precision)
                curve, scores = learn(fabric, module, config, prepared, seed, options, progress, checkpoint, games)
            graphs = export_all(
                module,
                prepared.mean,
                prepared.std,
                data.test.inputs,
                data.output,
                len(data.ids) == 1,
                data.metadata,
            )
            if not scores:
                scores = tasks[task].assess({part: Engine(graph) for part, graph in graphs.items()}, data, registry)
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
        "epochs": len(curve),
        "curve": curve,
        "picture": f"{picture.parent.name}/{picture.name}",
        **recall(name, config, options, task, data, seed, graphs, registry),
        "baseline": asdict(baseline(task, data, registry)),
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
    found = recalls(top(Engine(graphs[""]), data.test.inputs), data.test.labels, len(data.classes))
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


def load_task(task: str) -> Data:
    """The data of a task. Raises `UserError` when there is no such task, no data, or nothing to learn from."""
    module = tasks[task]
    if not hasattr(module, "load"):
        raise TaskError(
            f"{task} has no labels to train on; it gives samples to a net with published weights (`import`)."
        )
    data: Data = module.load()
    data.check()
    return data


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


@dataclass(frozen=True)
class Prepared:
    """A task as tensors: numbers float32 of zero mean and unit variance over the train split, ids as they are."""

    train: Sequence[Tensor]  # inputs (n, ...), labels (n, ...)
    validation: Sequence[Tensor]
    test: Split
    mean: Any  # of the sensor's values: one number for pictures, one per column of a table, None for ids
    std: Any
    form: Form
    passes: int  # over the train split in an epoch
    loss: str
    metric: Metric


def preprocess(data: Data) -> Prepared:
    """Step 1: the whole data in memory, normalised by what the train split says."""
    mean: Any = None
    std: Any = None
    if data.scale:
        mean, std = data.scale
    elif data.train.inputs.dtype == np.float32:
        mean, std = (torch.tensor(part) for part in (data.train.inputs.mean(axis=0), data.train.inputs.std(axis=0)))
        std[std == 0] = 1.0  # a column that never changes
    elif not data.ids:
        mean, std = float(data.train.inputs.mean()), float(data.train.inputs.std())

    def tensors(split: Split) -> list[Tensor]:
        return [normalise(split.inputs, mean, std), torch.tensor(split.labels)]

    counted = len(data.classes) or data.symbols
    middle = 0.0 if counted else float(data.train.labels.mean())
    form = Form(data.train.inputs.shape[1:], counted or 1, data.ids, middle)
    return Prepared(
        tensors(data.train),
        tensors(data.validation),
        data.test,
        mean,
        std,
        form,
        data.passes,
        data.loss,
        data.metric,
    )


def normalise(inputs: Array, mean: Any, std: Any) -> Tensor:
    """What the sensor gives as what the net takes."""
    return torch.tensor(inputs) if mean is None else (torch.tensor(inputs).float() - mean) / std


def build(name: str, config: Any, prepared: Prepared, answer: str = "row") -> nn.Module:
    """Step 2: the net for inputs of this form and for so many outputs.

    Raises `ModelError` when it gives other answers than the task asks for.
    """
    module: nn.Module = nets[name].build(config, prepared.form)
    if (given := getattr(module, "answers", "row")) != answer:
        raise ModelError(f"{name} gives {ANSWERS[given]}, but the task asks for {ANSWERS[answer]}.")
    return module


def learn(
    fabric: Fabric,
    module: nn.Module,
    config: Any,
    prepared: Prepared,
    seed: int,
    options: Options,
    progress: bool,
    checkpoint: Checkpoint | None,
    games: Callable[[int], Any] | None = None,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Steps 3 to 6, from weights drawn to a tested net, by play where there are games: learning curve and scores."""
    learner = initialise(fabric, module, config, prepared, seed, options)
    if games is None:
        curve = fit(fabric, learner, prepared, config, seed, progress, checkpoint)
    else:
        curve = play_and_learn(fabric, learner, games, config, seed, progress)
    return curve, test(fabric, learner, prepared)


def learn_alone(fabric: Fabric, net: str, task: str, seed: int, progress: bool, home: Path) -> dict[str, Any]:
    """Steps 1 to 6 in a process that starts with nothing: weights, learning curve and scores."""
    name, config, options = read_net(net)
    data = load_task(task)
    recipe = digest(name, config, options, task, data.fingerprint, seed)
    prepared = preprocess(data)
    module = build(name, config, prepared, data.answer)
    checkpoint = Checkpoint(home / "checkpoints" / f"{recipe}.pt", recipe)
    curve, scores = learn(fabric, module, config, prepared, seed, options, progress, checkpoint)
    return {"weights": module.state_dict(), "curve": curve, "scores": scores}


def check_devices(devices: int, batch: int) -> None:
    """Raises `ModelError` when a batch cannot be divided among so many processes."""
    if devices < 1 or batch % devices:
        raise ModelError(f"a batch of {batch} cannot be divided among {devices} processes; give batch= a multiple.")


def choose_threads(threads: int | str, net: str, prepared: Prepared, answer: str) -> tuple[int, dict[int, float]]:
    """As many threads as are asked for; of "auto" the fastest for a step of the net, and ms by number.

    The steps that are timed change weights that are thrown away. Raises `ModelError` for what is no number.
    """
    if threads != "auto":
        if not str(threads).isdecimal() or int(threads) < 1:
            raise ModelError(f"threads={threads} is neither a number from 1 nor auto.")
        return int(threads), {}
    name, config, options = read_net(net)
    module = build(name, config, prepared, answer)
    fabric = launch(choose_precision(module, options))
    learner = initialise(fabric, module, config, prepared, 0, options)
    learner.module.train()
    inputs, labels = (part[: config.batch].to(fabric.device) for part in prepared.train)
    return fastest(lambda: take_step(fabric, learner, inputs, labels))


def choose_precision(module: nn.Module, options: Options) -> str:
    """How precisely to compute: as the options say, else convolutions in bfloat16 where that is faster.

    On CPUs with AVX-512 or AMX, oneDNN trains convolutions 1.7 times as fast in bfloat16; small matrices gain nothing,
    so a net of large ones says that it is `wide`.
    """
    if options.precision != "auto":
        return PRECISIONS[options.precision]
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules()) or getattr(module, "wide", False)
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16-mixed" if convolves and fast else "32-true"


def launch(precision: str) -> Fabric:
    """Where to compute: a GPU where there is one."""
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # it announces the precision
    return Fabric(accelerator="auto", devices=1, precision=precision)


@dataclass(frozen=True)
class Learner:
    """What learns: the net, wrapped for its device, what it makes small, and the rule that changes it."""

    module: nn.Module
    wrapped: Any  # the same, in the precision and on the device of fabric
    optimizer: Any
    schedule: Any
    loss: Loss = cross_entropy
    options: Options = PLAIN

    def cost(self, fabric: Fabric, module: Any, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is made small, shape (), and the net's outputs; None of a net that has an objective of its own."""
        if hasattr(self.module, "objective"):
            with fabric.autocast():
                return module.objective(inputs, labels), None
        outputs = module(inputs)
        return self.loss(outputs, labels), outputs

    def state(self) -> dict[str, Any]:
        """All that a later step depends on, the order of the rows aside."""
        return {
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])


def initialise(
    fabric: Fabric, module: nn.Module, config: Any, prepared: Prepared, seed: int, options: Options = PLAIN
) -> Learner:
    """Step 3: weights drawn from the seed, an optimizer, and a learning rate that rises once and falls to nothing.

    Biases and norms do not decay.
    """
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    if options.layout == "channels-last":
        module.to(memory_format=torch.channels_last)
    weights = list(module.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    rule = optimizer(options.optimizer, groups, config.rate, getattr(config, "momentum", None))
    schedule = OneCycle(rule, config.epochs * getattr(config, "steps", steps_per_epoch(prepared, config.batch)))
    if plain(fabric):
        return Learner(module, module, rule, schedule, choose_loss(module, prepared, options), options)
    wrapped, rule = fabric.setup(module, rule)
    if hasattr(module, "objective"):
        wrapped.mark_forward_method("objective")
    return Learner(module, wrapped, rule, schedule, choose_loss(module, prepared, options), options)


def plain(fabric: Fabric) -> bool:
    """Whether there is nothing to wrap: one process that computes in float32 on a CPU."""
    return fabric.world_size == 1 and fabric.device.type == "cpu" and fabric._precision.precision == "32-true"


def choose_loss(module: nn.Module, prepared: Prepared, options: Options) -> Loss:
    """The net's own loss where it has one, otherwise the task's, with the weights and smoothing that are asked for."""
    if hasattr(module, "loss"):
        return module.loss
    if prepared.loss != "cross-entropy":
        return LOSSES[prepared.loss]
    weights = class_weights(prepared.train[1], prepared.form.outputs, options.balance) if options.balance else None
    return partial(cross_entropy, weights=weights, smoothing=options.smoothing)


def fit(
    fabric: Fabric,
    learner: Learner,
    prepared: Prepared,
    config: Any,
    seed: int,
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:
    """Step 4: epochs over the train split in an order drawn from the seed; the best epoch's weights stay, by the loss
    on the validation split, or the last one's of a net that says so.

    Returns loss, score on the validation split and CPU-seconds so far after each epoch. Stops early when the loss has
    not improved for a while. With a checkpoint it goes on where an earlier run stopped.
    Raises `ModelError` at the first step whose loss is no number; the checkpoint then holds the last whole epoch.
    """
    inputs, labels = (part.to(fabric.device) for part in prepared.train)
    order = torch.Generator().manual_seed(seed)
    steps = steps_per_epoch(prepared, config.batch)
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    alone = fabric.world_size == 1
    seldom = rare(labels, prepared.form.outputs) if learner.options.vary else torch.zeros(0)
    keeps_last = getattr(learner.module, "keeps_last", False)
    if checkpoint and (state := checkpoint.load()):
        learner.restore(state)
        order.set_state(state["order"])
        curve, best = state["curve"], state["best"]
    started_s = time.process_time() - (curve[-1]["cpu_s"] if curve else 0.0)
    with bar(progress, f"epoch {len(curve) + 1} of {config.epochs}", config.epochs * steps) as report:
        report(f"epoch {len(curve) + 1} of {config.epochs}", len(curve) * steps)
        for epoch in range(len(curve), config.epochs):
            if exhausted(curve) and not keeps_last:
                break
            learner.module.train()
            rows = torch.cat([draw_rows(labels, prepared, learner.options, order) for _ in range(prepared.passes)])
            rows = rows.to(fabric.device)
            seen = torch.zeros(steps, device=fabric.device)
            for step in range(steps):
                chosen = rows[step * config.batch : (step + 1) * config.batch][fabric.global_rank :: fabric.world_size]
                taken = inputs[chosen]
                if learner.options.vary:
                    taken = vary(taken, seldom[labels[chosen]], learner.options.vary, order)
                seen[step] = take_step(fabric, learner, taken, labels[chosen])
                if step % LOOK == 0 or step == steps - 1:
                    whole = seen[: step + 1] if alone else fabric.all_reduce(seen[: step + 1], reduce_op="mean")
                    refuse_divergence(whole, epoch, curve, config.rate, checkpoint)
                    report(f"epoch {epoch + 1} of {config.epochs}  loss {whole.mean():.3f}", LOOK)
            loss, scores = fabric.broadcast(validate(fabric, learner, prepared))
            spent_s = time.process_time() - started_s
            if not alone:
                spent_s = float(fabric.all_reduce(torch.tensor(spent_s), reduce_op="sum"))
            curve.append({"train_loss": whole.mean().item(), "loss": loss, **scores, "cpu_s": round(spent_s, 2)})
            said = "".join(f"  {name} {score:.4f}" for name, score in scores.items())
            report(f"epoch {epoch + 1} of {config.epochs}  loss {loss:.3f}{said}", 0)
            if np.isfinite(loss) if keeps_last else loss == min(each["loss"] for each in curve):
                best = {key: value.clone() for key, value in learner.module.state_dict().items()}
            if checkpoint and epoch + 1 < config.epochs and fabric.global_rank == 0:
                checkpoint.save({**learner.state(), "order": order.get_state(), "curve": curve, "best": best})
    if not best:
        raise ModelError(f"training diverged, its validation loss is {curve[-1]['loss']}: lower rate={config.rate}.")
    learner.module.load_state_dict(best)
    return curve


def draw_rows(labels: Tensor, prepared: Prepared, options: Options, order: torch.Generator) -> Tensor:
    """The order of one pass over the train split, or rows that are drawn so that rare classes come more often."""
    if options.resample:
        return draw(labels, prepared.form.outputs, options.resample, order)
    return torch.randperm(len(labels), generator=order)


def exhausted(curve: Sequence[dict[str, float]]) -> bool:
    """Whether the validation loss has not improved for `PATIENCE` epochs."""
    losses = [each["loss"] for each in curve]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


def refuse_divergence(
    seen: Tensor, epoch: int, curve: Sequence[dict[str, float]], rate: float, checkpoint: Checkpoint | None
) -> None:
    """Raises `ModelError` that names the first step of an epoch whose loss is no number."""
    if torch.isfinite(seen[-LOOK:]).all():
        return
    step = int(torch.isfinite(seen).logical_not().nonzero()[0])
    kept = f"; {checkpoint.path} holds epoch {len(curve)}" if checkpoint and curve else ""
    raise ModelError(
        f"training diverged, its loss is {seen[step].item()} at step {step + 1} of epoch {epoch + 1}: "
        f"give a lower rate than {rate}, or clip=1{kept}."
    )


def take_step(fabric: Fabric, learner: Learner, inputs: Tensor, labels: Tensor) -> Tensor:
    """One step of the optimizer on a batch, computed in parts if wanted; the mean loss before it, shape ()."""
    options = learner.options
    learner.optimizer.zero_grad()
    if options.accumulate == 1 and not options.lasso and not options.clip:  # no detour costs a small net a tenth
        loss = learner.cost(fabric, learner.wrapped, inputs, labels)[0]
        backward(fabric, learner, loss)
        learner.optimizer.step()
        learner.schedule.step()
        return loss.detach()
    total = torch.zeros((), device=inputs.device)
    for part, wanted in zip(inputs.chunk(options.accumulate), labels.chunk(options.accumulate), strict=True):
        loss = learner.cost(fabric, learner.wrapped, part, wanted)[0] * (len(wanted) / len(labels))
        if options.lasso:
            sizes = sum(weight.abs().sum() for weight in learner.module.parameters() if weight.ndim > 1)
            loss = loss + options.lasso * sizes * (len(wanted) / len(labels))
        backward(fabric, learner, loss)
        total += loss.detach()
    if options.clip:
        nn.utils.clip_grad_norm_(learner.module.parameters(), options.clip)
    learner.optimizer.step()
    learner.schedule.step()
    return total


def backward(fabric: Fabric, learner: Learner, loss: Tensor) -> None:
    """The gradients of a loss, by Fabric where it has wrapped the net."""
    if learner.wrapped is learner.module:
        loss.backward()
    else:
        fabric.backward(loss)


def validate(fabric: Fabric, learner: Learner, prepared: Prepared) -> tuple[float, dict[str, float]]:
    """Step 5: mean loss on the validation split, and the score by its name where it is found row by row."""
    return judge(fabric, learner, learner.wrapped, prepared.validation, prepared.metric)


def test(fabric: Fabric, learner: Learner, prepared: Prepared) -> dict[str, float]:
    """Step 6: the score on the test split by its name, in float32 as the exported graph computes.

    Nothing for a score that is not found row by row: its task finds it from the exported graphs.
    """
    if prepared.metric.of_rows is None:
        return {}
    inputs = normalise(prepared.test.inputs, prepared.mean, prepared.std)
    return judge(fabric, learner, learner.module, [inputs, torch.tensor(prepared.test.labels)], prepared.metric)[1]


def judge(
    fabric: Fabric, learner: Learner, module: Any, rows: Sequence[Tensor], metric: Metric, batch: int = 500
) -> tuple[float, dict[str, float]]:
    """Mean loss and score of a learner's module, wrapped or not, on rows, in batches and without gradients."""
    module.eval()
    batch = batch if metric.of_rows else batch // 8
    losses, scores = [], []
    with torch.inference_mode():
        for part, wanted in zip(*(part.split(batch) for part in rows), strict=True):
            loss, outputs = learner.cost(fabric, module, part.to(fabric.device), wanted.to(fabric.device))
            losses.append(loss.item() * len(wanted))
            if metric.of_rows is not None and outputs is not None:
                scores.append(metric.of_rows(outputs.float().cpu().numpy(), wanted.numpy()))
    score = {metric.name: metric.of_mean(float(np.concatenate(scores).mean()))} if scores else {}
    return sum(losses) / len(rows[1]), score


def steps_per_epoch(prepared: Prepared, batch: int) -> int:
    """Whole batches; a remainder waits for the next epoch's order."""
    return max(len(prepared.train[1]) * prepared.passes // batch, 1)
