"""Pre-training: a net's weights from inputs alone, by a pretext (pretexts/), before training shows it labels."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from airserve.catalog import pretexts
from airserve.learn.checkpoints import Checkpoint
from airserve.learn.optimizers import by_kind, optimizer
from airserve.learn.preparing import Prepared
from airserve.learn.recipe import Options
from airserve.learn.schedules import OneCycle
from airserve.learn.stepping import Learner, take_steps
from airserve.progress import bar

CLIP = 1.0  # largest norm of a step's gradient


def pretrain(
    fabric: Fabric, net: nn.Module, name: str, prepared: Prepared, seed: int, progress: bool, folder: Path | None
) -> dict[str, Any]:
    """Move a net's weights by the pretext of this name; the weights' digest and the CPU-seconds they took when found.

    They are kept in the folder, so that the same net and inputs, with more labels or with fewer, need it once. What
    follows draws the same numbers either way. Raises `ModelError` for a net or inputs that the pretext cannot learn
    from, and at a loss that is no number.
    """
    module = pretexts[name]
    config = module.Config()
    torch.manual_seed(seed)
    learner: nn.Module = module.build(config, net, prepared.form).to(fabric.device)
    recipe = digest(net, name, config, prepared.train[0], seed, fabric._precision.precision)
    kept = Checkpoint(folder / f"{name}-{recipe}.pt", recipe) if folder else None
    if kept and fabric.broadcast(kept.path.exists()) and (state := kept.load()):  # all processes take them, or none
        net.load_state_dict(state["weights"])
        spent_s: float = state["cpu_s"]
    else:
        spent_s = fit(fabric, learner, prepared.train[0], config, seed, progress, name)
        if kept and fabric.global_rank == 0:
            kept.save({"weights": net.state_dict(), "cpu_s": spent_s})
    torch.manual_seed(seed)
    return {"weights": recipe, "cpu_s": round(spent_s, 2)}


def fit(fabric: Fabric, module: nn.Module, inputs: Tensor, config: Any, seed: int, progress: bool, name: str) -> float:
    """Epochs over the inputs in an order drawn from the seed, by the pretext's optimizer (else adamw); CPU-seconds."""
    kind = getattr(config, "optimizer", "adamw")
    rule = optimizer(kind, by_kind(kind, module, config.decay), config.rate)
    steps = max(len(inputs) // config.batch, 1)
    learner = Learner(module, module, rule, OneCycle(rule, config.epochs * steps), options=Options(clip=CLIP))
    order = torch.Generator().manual_seed(seed)
    started_s = time.process_time()
    with bar(name, config.epochs * steps, wanted=progress, stays=True) as done:
        for epoch in range(config.epochs):
            rows = torch.randperm(len(inputs), generator=order).split(config.batch)[:steps]
            take_steps(
                fabric,
                learner,
                ((inputs[chosen].to(fabric.device),) for chosen in rows),
                steps,
                epoch,
                done,
                f"{name}: epoch {epoch + 1} of {config.epochs}",
                "train without it, or with another precision",
                f"{name} pre-training",
            )
    return time.process_time() - started_s


def digest(net: nn.Module, name: str, config: Any, inputs: Tensor, seed: int, precision: str) -> str:
    """SHA-256 over all that the weights found depend on: the net as it was drawn, the pretext and the inputs."""
    found = hashlib.sha256(f"{name} {asdict(config)} {seed} {net} {tuple(inputs.shape)}".encode())
    found.update(precision.removeprefix("32-true").encode())
    for tensor in (*net.state_dict().values(), inputs):
        found.update(tensor.detach().cpu().contiguous().numpy())
    return found.hexdigest()
