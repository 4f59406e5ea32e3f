"""Stepping: what learns, one step of it on a batch, and an epoch of steps that ends where a loss is no number.

Training, pre-training and learning by play take the same steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from airserve.learn.losses import Loss, cross_entropy
from airserve.learn.recipe import Options
from airserve.model import ModelError
from airserve.progress import Bar

PLAIN = Options()  # no option
LOOK = 20  # steps after which the loss is looked at


@dataclass(frozen=True)
class Learner:
    """What learns: the net, wrapped for its device, what it makes small, and the rule that changes it."""

    module: nn.Module
    wrapped: Any  # the same, in the precision and on the device of fabric
    optimizer: Any
    schedule: Any
    loss: Loss = cross_entropy
    options: Options = PLAIN

    def cost(self, fabric: Fabric, module: Any, *batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is made small, shape (), and the net's outputs; None of a net that has an objective of its own.

        A batch is inputs and labels; inputs alone where the objective is a pretext's.
        """
        if hasattr(self.module, "objective"):
            with fabric.autocast():
                return module.objective(*batch), None
        inputs, labels = batch
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


def take_steps(
    fabric: Fabric,
    learner: Learner,
    batches: Iterable[tuple[Tensor, ...]],
    steps: int,
    epoch: int,
    done: Bar,
    text: str,
    instead: str,
    work: str = "training",
) -> float:
    """An epoch: a step on each of its batches, of which there are `steps`; the mean loss, over all processes.

    Every `LOOK` steps the bar tells how many are done and, behind its `text`, the mean loss so far. Raises `ModelError`
    at the first step whose loss is no number, as `refuse_divergence` does.
    """
    learner.module.train()
    seen, mean = torch.zeros(steps, device=fabric.device), 0.0
    for step, batch in enumerate(batches):
        seen[step] = take_step(fabric, learner, *batch)
        if step % LOOK == 0 or step == steps - 1:
            losses = seen[: step + 1]
            if fabric.world_size > 1:
                losses = fabric.all_reduce(losses, reduce_op="mean")
            refuse_divergence(losses, epoch, instead, work)
            mean = losses.mean().item()
            done.to(epoch * steps + step + 1, text=f"{text}  loss {mean:.3f}")
    return mean


def take_step(fabric: Fabric, learner: Learner, *batch: Tensor) -> Tensor:
    """One step of the optimizer on a batch, computed in parts if wanted; the mean loss before it, shape ()."""
    options = learner.options
    learner.optimizer.zero_grad()
    if options.accumulate == 1 and not options.lasso and not options.clip:  # no detour costs a small net a tenth
        loss = learner.cost(fabric, learner.wrapped, *batch)[0]
        backward(fabric, learner, loss)
        learner.optimizer.step()
        learner.schedule.step()
        return loss.detach()
    total = torch.zeros((), device=batch[0].device)
    for part in zip(*(each.chunk(options.accumulate) for each in batch), strict=True):
        share = len(part[0]) / len(batch[0])
        loss = learner.cost(fabric, learner.wrapped, *part)[0] * share
        if options.lasso:
            sizes = sum(weight.abs().sum() for weight in learner.module.parameters() if weight.ndim > 1)
            loss = loss + options.lasso * sizes * share
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


def refuse_divergence(losses: Tensor, epoch: int, instead: str, work: str = "training") -> None:
    """Raises `ModelError` that names the first step of an epoch whose loss is no number, and what to do `instead`."""
    if torch.isfinite(losses[-LOOK:]).all():
        return
    step = int(torch.isfinite(losses).logical_not().nonzero()[0])
    raise ModelError(
        f"{work} diverged, its loss is {losses[step].item()} at step {step + 1} of epoch {epoch + 1}: {instead}."
    )
