"""Fitting: the third to the sixth step of training, from weights drawn to a net that was tested."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from airserve.learn.balancing import draw, rare, vary
from airserve.learn.checkpoints import Checkpoint
from airserve.learn.losses import LOSSES, Loss, class_weights, cross_entropy
from airserve.learn.metrics import Metric
from airserve.learn.optimizers import by_kind, optimizer
from airserve.learn.preparing import Prepared, few, normalise
from airserve.learn.pretraining import pretrain
from airserve.learn.recipe import Options
from airserve.learn.reinforcement import play_and_learn
from airserve.learn.schedules import OneCycle
from airserve.learn.stepping import PLAIN, Learner, take_steps
from airserve.model import ModelError
from airserve.progress import bar

PATIENCE = 5  # epochs without a better validation loss after which training stops


@dataclass(frozen=True)
class Learnt:
    """What is known of a net that was trained."""

    curve: list[dict[str, float]]  # by epoch
    scores: dict[str, float]  # on the test split; empty where the task finds them from the exported graphs
    pretrained: dict[str, Any]  # which weights a pretext found and the CPU-seconds it took; empty without one


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
) -> Learnt:
    """Steps 3 to 6, from weights drawn to a tested net, by play where there are games.

    The curve's CPU-seconds are without those of pre-training.
    """
    labelled = few(prepared, options.labels, seed) if options.labels else prepared
    learner = initialise(fabric, module, config, labelled, seed, options)
    pretrained: dict[str, Any] = {}
    if games is None:
        if options.pretrain != "none":
            folder = checkpoint.path.parent if checkpoint else None
            pretrained = pretrain(fabric, module, options.pretrain, prepared, seed, progress, folder)
        curve = fit(fabric, learner, labelled, config, seed, progress, checkpoint)
    else:
        curve = play_and_learn(fabric, learner, games, config, seed, progress)
    return Learnt(curve, test(fabric, learner, prepared), pretrained)


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
    groups = by_kind(options.optimizer, module, config.decay)
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
    seldom = rare(labels, prepared.form.outputs) if learner.options.vary else None
    keeps_last = getattr(learner.module, "keeps_last", False)
    if checkpoint and (state := checkpoint.load()):
        try:
            learner.restore(state)
            order.set_state(state["order"])
            curve, best = state["curve"], state["best"]
        except (KeyError, RuntimeError, TypeError, ValueError):  # RuntimeError: torch's, of weights of other shapes
            raise ModelError(f"the checkpoint {checkpoint.path} does not fit this net; delete it.") from None
    started_s, before_s = time.process_time(), curve[-1]["cpu_s"] if curve else 0.0
    with bar(f"epoch {len(curve) + 1} of {config.epochs}", config.epochs * steps, wanted=progress, stays=True) as done:
        done.to(len(curve) * steps)
        for epoch in range(len(curve), config.epochs):
            if exhausted(curve) and not keeps_last:
                break
            rows = torch.cat([draw_rows(labels, prepared, learner.options, order) for _ in range(prepared.passes)])
            rows = rows.to(fabric.device)
            kept = f"; {checkpoint.path} holds epoch {len(curve)}" if checkpoint and curve else ""
            mean = take_steps(
                fabric,
                learner,
                batches(fabric, inputs, labels, rows.split(config.batch)[:steps], seldom, learner.options.vary, order),
                steps,
                epoch,
                done,
                f"epoch {epoch + 1} of {config.epochs}",
                f"give a lower rate than {config.rate}, or clip=1{kept}",
            )
            loss, scores = fabric.broadcast(validate(fabric, learner, prepared))
            spent_s = time.process_time() - started_s
            if fabric.world_size > 1:
                spent_s = float(fabric.all_reduce(torch.tensor(spent_s), reduce_op="sum"))
            curve.append({"train_loss": mean, "loss": loss, **scores, "cpu_s": round(before_s + spent_s, 2)})
            said = "".join(f"  {name} {score:.4f}" for name, score in scores.items())
            done.by(0, f"epoch {epoch + 1} of {config.epochs}  loss {loss:.3f}{said}")
            if np.isfinite(loss) if keeps_last else loss == min(each["loss"] for each in curve):
                best = {key: value.clone() for key, value in learner.module.state_dict().items()}
            if checkpoint and epoch + 1 < config.epochs and fabric.global_rank == 0:
                checkpoint.save({**learner.state(), "order": order.get_state(), "curve": curve, "best": best})
    if not best:
        raise ModelError(f"training diverged, its validation loss is {curve[-1]['loss']}: lower rate={config.rate}.")
    learner.module.load_state_dict(best)
    return curve


def batches(
    fabric: Fabric,
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    seldom: Tensor | None,
    amount: float,
    order: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each batch the rows that are this process's; those of `seldom` classes, bool (classes,), are varied."""
    for row in rows:
        chosen = row[fabric.global_rank :: fabric.world_size]
        taken, wanted = inputs[chosen], labels[chosen]
        yield taken if seldom is None else vary(taken, seldom[wanted], amount, order), wanted


def draw_rows(labels: Tensor, prepared: Prepared, options: Options, order: torch.Generator) -> Tensor:
    """The order of one pass over the train split, or rows that are drawn so that rare classes come more often."""
    if options.resample:
        return draw(labels, prepared.form.outputs, options.resample, order)
    return torch.randperm(len(labels), generator=order)


def exhausted(curve: Sequence[dict[str, float]]) -> bool:
    """Whether the validation loss has not improved for `PATIENCE` epochs."""
    losses = [each["loss"] for each in curve]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


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
