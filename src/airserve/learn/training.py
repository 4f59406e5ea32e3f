"""Training: from a net and a task to a Model, in seven steps that follow in the order in which they run.

preprocess, build, initialise, fit (the training itself), validate, test, export; `train` calls them. The last stands
in exporting.py, for a net that comes with its weights is exported too.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from airserve.catalog import nets, tasks
from airserve.errors import UserError
from airserve.learn.progress import bar
from airserve.learn.tasks import Data, Split, TaskError
from airserve.model import Model, ModelError
from airserve.registry import Registry

try:
    import torch
    import torch.nn.functional as F
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from airserve.learn.exporting import export
except ModuleNotFoundError as error:
    raise UserError(f"training needs the package {error.name}: `pip install 'airserve[learn]'`.") from None

RECIPE = 2  # raise it when a change of this file or of a net would train another Model from the same settings
PATIENCE = 5  # epochs without a better validation loss after which training stops
WARMUP = 0.2  # part of the steps in which the learning rate rises


def train(
    net: str, task: str, *, seed: int = 0, registry: Registry, fresh: bool = False, progress: bool = True
) -> Model:
    """The Model of a net for a task: "resnet8" or with parameters, "resnet8,width=32,epochs=8", and "fashion-mnist".

    A Model whose settings, data and seed are those of an earlier one comes from the registry, unless `fresh`.
    The test split is touched once, after training. Raises `UserError` for a name, a parameter or data that is not.
    """
    name, config = read_net(net)
    data = load_task(task)
    settings = {"net": name, **asdict(config), "task": task, "data": data.fingerprint, "seed": seed, "recipe": RECIPE}
    recipe = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if not fresh and (known := registry.trained(recipe)):
        return known

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small nets: two OpenMP threads on a busy machine cost up to thirty times the time
    try:
        with torch.random.fork_rng():
            prepared = preprocess(data)
            module = build(name, config, prepared)
            fabric = launch(module)
            learner = initialise(fabric, module, config, prepared, seed)
            started_s = time.process_time()
            curve = fit(fabric, learner, prepared, config, seed, progress)
            cpu_s = time.process_time() - started_s
            accuracy = test(fabric, learner, prepared)
            graph = export(learner.module, prepared.mean, prepared.std, data.test.inputs)
    finally:
        torch.set_num_threads(threads)
    return registry.register(
        f"{name}-{data.short}",
        graph,
        samples=data.samples,
        scores={"accuracy": accuracy},
        lineage={
            "net": name,
            "settings": asdict(config),
            "task": task,
            "classes": data.classes,
            "seed": seed,
            "data": data.fingerprint,
            "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            "recipe": recipe,
            "parameters": sum(weight.numel() for weight in learner.module.parameters()),
            "precision": fabric._precision.precision,
            "torch": torch.__version__,
            "cpu_s": round(cpu_s, 2),
            "epochs": len(curve),
            "curve": curve,
        },
    )


def read_net(net: str) -> tuple[str, Any]:
    """The name and the Config of "resnet8,width=32,epochs=8". Raises `UserError` with what is near.

    >>> name, config = read_net("mlp,hidden=32")
    >>> name, config.hidden, config.epochs
    ('mlp', 32, 8)
    """
    name, *parameters = net.split(",")
    config = nets[name].Config()
    kinds = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key not in kinds:
            raise ModelError(f"{name} has no parameter {key!r}; it has {', '.join(kinds)}.")
        try:
            number = kinds[key](value)
        except ValueError:
            number = -1
        if number <= 0:
            raise ModelError(
                f"{key}={value} of {name} is not a number above 0; {key} is {getattr(config, key)} by default."
            )
        config = replace(config, **{key: number})
    return name, config


def load_task(task: str) -> Data:
    """The data of a task. Raises `UserError` when there is no such task, no data, or nothing to learn from."""
    module = tasks[task]
    if not hasattr(module, "load"):
        raise TaskError(
            f"{task} has no labels to train on; it gives samples to a net with published weights (`import`)."
        )
    data: Data = module.load()
    return data


@dataclass(frozen=True)
class Prepared:
    """A task as tensors: inputs float32 of zero mean and unit variance over the train split, labels int64."""

    train: Sequence[Tensor]  # inputs (n, height, width), labels (n,)
    validation: Sequence[Tensor]
    test: Split
    mean: float  # of the sensor's values
    std: float
    shape: tuple[int, ...]  # of one input
    classes: int
    passes: int  # over the train split in an epoch


def preprocess(data: Data) -> Prepared:
    """Step 1: the whole data in memory, normalised by what the train split says."""
    mean, std = float(data.train.inputs.mean()), float(data.train.inputs.std())

    def tensors(split: Split) -> list[Tensor]:
        return [(torch.tensor(split.inputs).float() - mean) / std, torch.tensor(split.labels)]

    return Prepared(
        tensors(data.train),
        tensors(data.validation),
        data.test,
        mean,
        std,
        data.train.inputs.shape[1:],
        len(data.classes),
        data.passes,
    )


def build(name: str, config: Any, prepared: Prepared) -> nn.Module:
    """Step 2: the net for inputs of this shape and for so many classes."""
    module: nn.Module = nets[name].build(config, prepared.shape, prepared.classes)
    return module


def launch(module: nn.Module) -> Fabric:
    """Where and how precisely to compute: a GPU where there is one; convolutions in bfloat16 where it is faster.

    On CPUs with AVX-512 or AMX, oneDNN trains convolutions 1.7 times as fast in bfloat16; small matrices gain nothing.
    """
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # it announces the precision
    return Fabric(accelerator="auto", devices=1, precision="bf16-mixed" if convolves and fast else "32-true")


@dataclass(frozen=True)
class Learner:
    """What learns: the net, wrapped for its device, and the rule that changes it."""

    module: nn.Module
    wrapped: Any  # the same, in the precision and on the device of fabric
    optimizer: Any
    schedule: Any


def initialise(fabric: Fabric, module: nn.Module, config: Any, prepared: Prepared, seed: int) -> Learner:
    """Step 3: weights drawn from the seed, AdamW, and a learning rate that rises once and falls to nothing.

    One cycle (Smith and Topin 2017, arXiv:1708.07120); biases and norms do not decay.
    """
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    module.to(memory_format=torch.channels_last)
    weights = list(module.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.99), fused=True)
    steps = config.epochs * steps_per_epoch(prepared, config.batch)

    def rate(step: int) -> float:
        done = step / steps
        return max(done / WARMUP if done < WARMUP else (1 - done) / (1 - WARMUP), 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    wrapped, optimizer = fabric.setup(module, optimizer)
    return Learner(module, wrapped, optimizer, schedule)


def fit(
    fabric: Fabric, learner: Learner, prepared: Prepared, config: Any, seed: int, progress: bool
) -> list[dict[str, float]]:
    """Step 4: epochs over the train split in an order drawn from the seed; the best epoch's weights stay.

    Returns the validation loss and accuracy after each epoch. Stops early when the loss has not improved for a while.
    Raises `ModelError` when the loss is no number.
    """
    inputs, labels = (part.to(fabric.device) for part in prepared.train)
    order = torch.Generator().manual_seed(seed)
    steps = steps_per_epoch(prepared, config.batch)
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    with bar(progress, f"epoch 1 of {config.epochs}", config.epochs * steps) as report:
        for epoch in range(config.epochs):
            learner.module.train()
            rows = torch.cat([torch.randperm(len(labels), generator=order) for _ in range(prepared.passes)])
            rows = rows.to(fabric.device)
            total = torch.zeros((), device=fabric.device)
            for step in range(steps):
                chosen = rows[step * config.batch : (step + 1) * config.batch]
                total += take_step(fabric, learner, inputs[chosen], labels[chosen])
                if step % 20 == 0:
                    report(f"epoch {epoch + 1} of {config.epochs}  loss {total.item() / (step + 1):.3f}", 20)
            loss, accuracy = validate(fabric, learner, prepared)
            curve.append({"train_loss": total.item() / steps, "loss": loss, "accuracy": accuracy})
            report(f"epoch {epoch + 1} of {config.epochs}  loss {loss:.3f}  accuracy {accuracy:.4f}", 0)
            losses = [each["loss"] for each in curve]
            if loss == min(losses):
                best = {key: value.clone() for key, value in learner.module.state_dict().items()}
            elif epoch - losses.index(min(losses)) >= PATIENCE:
                break
    if not best:
        raise ModelError(f"training diverged, its loss is {curve[-1]['loss']}: give a lower rate than {config.rate}.")
    learner.module.load_state_dict(best)
    return curve


def take_step(fabric: Fabric, learner: Learner, inputs: Tensor, labels: Tensor) -> Tensor:
    """One step of the optimizer on a batch; the mean cross-entropy before it, in nats, shape ()."""
    loss = F.cross_entropy(learner.wrapped(inputs), labels)
    learner.optimizer.zero_grad()
    fabric.backward(loss)
    learner.optimizer.step()
    learner.schedule.step()
    return loss.detach()


def validate(fabric: Fabric, learner: Learner, prepared: Prepared) -> tuple[float, float]:
    """Step 5: mean cross-entropy in nats and accuracy on the validation split."""
    inputs, labels = prepared.validation
    logits = answers(fabric, learner.wrapped, inputs)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def test(fabric: Fabric, learner: Learner, prepared: Prepared) -> float:
    """Step 6: accuracy on the test split, in float32 as the exported graph computes."""
    inputs = (torch.tensor(prepared.test.inputs).float() - prepared.mean) / prepared.std
    found = answers(fabric, learner.module, inputs).argmax(1)
    return (found == torch.tensor(prepared.test.labels)).double().mean().item()


def answers(fabric: Fabric, module: Any, inputs: Tensor, batch: int = 500) -> Tensor:
    """Logits of all inputs, float32, shape (n, classes), in batches and without gradients."""
    module.eval()
    with torch.inference_mode():
        return torch.cat([module(part.to(fabric.device)).float().cpu() for part in inputs.split(batch)])


def steps_per_epoch(prepared: Prepared, batch: int) -> int:
    """Whole batches; a remainder waits for the next epoch's order."""
    return max(len(prepared.train[1]) * prepared.passes // batch, 1)
