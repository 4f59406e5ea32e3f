"""Distributing: one training over several processes, each with its part of every batch; the gradients are averaged.

The loss is that of one process up to rounding, where a batch divides evenly and no norm or dropout looks at a part of
it; those see their part alone, as in Li et al. 2020, arXiv:2006.15704.
"""

import logging
import multiprocessing
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from airserve.errors import UserError
from airserve.learn.checkpoints import Checkpoint
from airserve.learn.fitting import Learnt, learn
from airserve.learn.preparing import build, load_task, preprocess
from airserve.learn.recipe import digest, read_net
from airserve.linux import die_with_parent
from airserve.model import ModelError

BACKEND = "ddp_spawn"  # a fork of a process that has computed gradients does not compute


def spread(
    devices: int, precision: str, net: str, task: str, seed: int, progress: bool, home: Path, module: nn.Module
) -> Learnt:
    """Train a net for a task in so many processes. `module` gets the weights.

    The processes end with this one, however it ends: at Ctrl-C, and when it is killed. Raises the `UserError` that
    they meet.
    """
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=BACKEND, precision=precision)
    quiet()
    before = set(multiprocessing.active_children())
    with tempfile.TemporaryDirectory(prefix="airserve-") as folder:
        result = Path(folder) / "learnt.pt"
        try:
            fabric.launch(work, net, task, seed, progress, home, result)
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            refuse(result)  # what one process met ends the others too, each in a way of its own
            if isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            raise ModelError(f"a training process ended: {str(error).splitlines()[0][:120]}.") from None
        finally:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
                process.join()
        refuse(result)
        found: dict[str, Any] = torch.load(result, weights_only=True)
    module.load_state_dict(found["weights"])
    return Learnt(found["curve"], found["scores"], found["pretrained"])


def refuse(result: Path) -> None:
    """Raises the `UserError` that a process met and left beside the result."""
    for path in result.parent.glob("error-*"):
        raise ModelError(path.read_text(encoding="utf-8")) from None


def work(fabric: Fabric, net: str, task: str, seed: int, progress: bool, home: Path, result: Path) -> None:
    """What each process does: the steps from the data to the test, on one thread; the first says what was found.

    Whichever meets a `UserError` says so beside the result.
    """
    quiet()
    if parent := multiprocessing.parent_process():
        die_with_parent(parent.pid or 0)
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = learn_alone(fabric, net, task, seed, progress and fabric.global_rank == 0, home)
    except UserError as error:
        result.with_name(f"error-{fabric.global_rank}").write_text(str(error), encoding="utf-8")
        return
    if fabric.global_rank == 0:
        torch.save(found, result)


def learn_alone(fabric: Fabric, net: str, task: str, seed: int, progress: bool, home: Path) -> dict[str, Any]:
    """Steps 1 to 6 in a process that starts with nothing: weights, and what is known of them."""
    name, config, options = read_net(net)
    data = load_task(task)
    recipe = digest(name, config, options, task, data.fingerprint, seed)
    prepared = preprocess(data)
    module = build(name, config, prepared, data.answer)
    checkpoint = Checkpoint(home / "checkpoints" / f"{recipe}.pt", recipe)
    learnt = learn(fabric, module, config, prepared, seed, options, progress, checkpoint)
    return {"weights": module.state_dict(), **asdict(learnt)}


def check_devices(devices: int, batch: int) -> None:
    """Raises `ModelError` when a batch cannot be divided among so many processes."""
    if devices < 1 or batch % devices:
        raise ModelError(f"a batch of {batch} cannot be divided among {devices} processes; give batch= a multiple.")


def quiet() -> None:
    """Fabric announces its processes and precision; the bar is enough."""
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


quiet()  # in a process that `spread` starts Fabric speaks before `work` does
