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
from airserve.learn.schedules import OneCycle
from airserve.model import ModelError
from airserve.progress import bar

CLIP = 1.0  # largest norm of a step's gradient
LOOK = 20  # steps after which the loss is looked at


def pretrain(
    fabric: Fabric, net: nn.Module, name: str, prepared: Prepared, seed: int, progress: bool, folder: Path | None
) -> float:
    """Move a net's weights by the pretext of this name; the CPU-seconds that it took.

    The weights found are kept in the folder, so that the same net and inputs, with more labels or with fewer, need it
    once. What follows draws the same numbers either way. Raises `ModelError` for a net or inputs that the pretext
    cannot learn from, and at a loss that is no number.
    """
    module = pretexts[name]
    config = module.Config()
    torch.manual_seed(seed)
    learner: nn.Module = module.build(config, net, prepared.form).to(fabric.device)
    recipe = digest(net, name, config, prepared.train[0], seed)
    kept = Checkpoint(folder / f"{name}-{recipe}.pt", recipe) if folder else None
    if kept and (state := kept.load()):
        net.load_state_dict(state["weights"])
        spent_s: float = state["cpu_s"]
    else:
        spent_s = fit(fabric, learner, prepared.train[0], config, seed, progress, name)
        if kept and fabric.global_rank == 0:
            kept.save({"weights": net.state_dict(), "cpu_s": spent_s})
    torch.manual_seed(seed)
    return spent_s


def fit(fabric: Fabric, learner: nn.Module, inputs: Tensor, config: Any, seed: int, progress: bool, name: str) -> float:
    """Epochs over the inputs in an order drawn from the seed, by the pretext's optimizer (else adamw)."""
    kind, weights = getattr(config, "optimizer", "adamw"), list(learner.parameters())
    rule = optimizer(kind, by_kind(kind, learner, config.decay), config.rate)
    steps = max(len(inputs) // config.batch, 1)
    schedule, order = OneCycle(rule, config.epochs * steps), torch.Generator().manual_seed(seed)
    learner.train()
    started_s = time.process_time()
    with bar(name, config.epochs * steps, wanted=progress, stays=True) as done:
        for epoch in range(config.epochs):
            rows, total = torch.randperm(len(inputs), generator=order), torch.zeros(())
            for step in range(steps):
                chosen = rows[step * config.batch : (step + 1) * config.batch]
                rule.zero_grad()
                with fabric.autocast():
                    loss = learner.objective(inputs[chosen].to(fabric.device))
                loss.backward()
                nn.utils.clip_grad_norm_(weights, CLIP)
                rule.step()
                schedule.step()
                total += loss.detach().cpu()
                if step % LOOK == 0 or step == steps - 1:
                    if not torch.isfinite(total):
                        raise ModelError(
                            f"{name} pre-training diverged: its loss is no number by step {step + 1} of epoch "
                            f"{epoch + 1}; train without it, or with another precision."
                        )
                    said = f"{name}: epoch {epoch + 1} of {config.epochs}  loss {total / (step + 1):.3f}"
                    done.to(epoch * steps + step + 1, text=said)
    return time.process_time() - started_s


def digest(net: nn.Module, name: str, config: Any, inputs: Tensor, seed: int) -> str:
    """SHA-256 over all that the weights found depend on: the net as it was drawn, the pretext and the inputs."""
    found = hashlib.sha256(f"{name} {asdict(config)} {seed} {net} {tuple(inputs.shape)}".encode())
    for tensor in (*net.state_dict().values(), inputs):
        found.update(tensor.detach().cpu().contiguous().numpy())
    return found.hexdigest()
