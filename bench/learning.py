"""What the training loop costs beside a bare one, a Lightning Trainer and Keras: python bench/learning.py [--json]

The same perceptron, the same rows in memory, the same optimizer, one thread. The figure to reach: at most 1.05 times
the bare loop's CPU time, the median over rounds in which both take turns. Lightning and Keras are timed when they are
installed (`make bench-learn` sees to it); Lightning reads through torch's DataLoader, as its users do, and once more
from batches made beforehand. And what an epoch of ResNet-8 takes, as precisely as it is trained by default: the figure
to reach is 35 CPU-seconds (100 steps are timed, the median of their tens counts; validation is not in it).
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from airserve.catalog import nets
from airserve.learn.computing import choose_precision, launch
from airserve.learn.fitting import fit, initialise, steps_per_epoch
from airserve.learn.losses import cross_entropy
from airserve.learn.preparing import build, load_task, preprocess
from airserve.learn.recipe import Options
from airserve.learn.stepping import take_step

MOST = 1.05
MOST_EPOCH_S = 35.0
PARTS, STEPS = 10, 10  # of ResNet-8: how often so many steps are timed
BATCH, EPOCHS = 256, 2


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's advice
    os.environ["KERAS_BACKEND"] = "torch"
    config = replace(nets["mlp"].Config(), epochs=EPOCHS, batch=BATCH)
    whole = preprocess(load_task("fashion-mnist"))
    prepared = replace(whole, validation=[part[:1] for part in whole.validation])  # nobody else validates here
    steps = EPOCHS * (len(whole.train[1]) // BATCH)
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(config, prepared),
        "airserve": lambda: ours(config, prepared),
        **others(config, prepared),
    }
    spent_us: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(given.rounds + 1):
        for name, way in ways.items():
            if turn > 1 and name not in ("bare", "airserve"):
                continue  # they are far off, and slow
            started_s = time.process_time()
            way()
            if turn:  # the first warms up
                spent_us[name].append((time.process_time() - started_s) / steps * 1e6)
    ratio = statistics.median(o / b for o, b in zip(spent_us["airserve"], spent_us["bare"], strict=True))
    medians = {name: statistics.median(times) for name, times in spent_us.items()}
    epoch_s, precision = epoch_of_resnet8(whole)
    kept = ratio <= MOST and epoch_s <= MOST_EPOCH_S
    if given.json:
        found = {"us_per_step": {name: round(us, 1) for name, us in medians.items()}, "ratio": round(ratio, 4)}
        resnet8 = {"epoch_cpu_s": round(epoch_s, 1), "most_epoch_cpu_s": MOST_EPOCH_S, "precision": precision}
        print(json.dumps({**found, "most": MOST, "resnet8": resnet8, "kept": kept}, indent=1))
    else:
        for name, us in medians.items():
            print(f"{name:34} {us:8.0f} us of CPU a step, {us / medians['bare']:.2f} times bare")
        said = "kept" if ratio <= MOST else "not kept"
        print(f"airserve / bare, median of paired rounds: {ratio:.3f}, at most {MOST}: {said}")
        said = "kept" if epoch_s <= MOST_EPOCH_S else "not kept"
        print(f"resnet8, {precision}: {epoch_s:.1f} CPU-s an epoch, at most {MOST_EPOCH_S:g}: {said}")
    return 0 if kept else 1


def epoch_of_resnet8(prepared: Any) -> tuple[float, str]:
    """CPU-seconds of an epoch's steps, from some of them, and how precisely they compute."""
    config = nets["resnet8"].Config()
    module = build("resnet8", config, prepared)
    precision = choose_precision(module, Options())
    fabric = launch(precision)
    learner = initialise(fabric, module, config, prepared, 0)
    learner.module.train()
    inputs, labels = prepared.train
    rows, spent_s = torch.randperm(len(labels)).split(config.batch), []
    for part in range(PARTS + 1):
        started_s = time.process_time()
        for chosen in rows[part * STEPS : (part + 1) * STEPS]:
            take_step(fabric, learner, inputs[chosen], labels[chosen])
        spent_s.append(time.process_time() - started_s)
    return statistics.median(spent_s[1:]) / STEPS * steps_per_epoch(prepared, config.batch), precision


def ours(config: Any, prepared: Any) -> None:
    module = build("mlp", config, prepared)
    fabric = launch("32-true")
    fit(fabric, initialise(fabric, module, config, prepared, 0), prepared, config, 0, False)


def optimizer(module: Any, config: Any) -> Any:
    """The optimizer of our nets: what decays and what does not."""
    weights = list(module.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.99), fused=True)


def bare(config: Any, prepared: Any) -> None:
    module = build("mlp", config, prepared)
    rule = optimizer(module, config)
    inputs, labels = prepared.train
    for _ in range(config.epochs):
        order = torch.randperm(len(labels))
        for step in range(len(labels) // config.batch):
            chosen = order[step * config.batch : (step + 1) * config.batch]
            rule.zero_grad()
            F.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
            rule.step()


def others(config: Any, prepared: Any) -> dict[str, Callable[[], Any]]:
    """The same by a Lightning Trainer and by Keras, where they are installed."""
    ways: dict[str, Callable[[], Any]] = {}
    inputs, labels = prepared.train
    try:
        import logging

        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Task(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = build("mlp", config, prepared)

            def training_step(self, batch: Any, at: int) -> Any:
                return cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return optimizer(self.net, config)

        def trainer(loader: Any) -> None:
            lightning.Trainer(
                accelerator="cpu", devices=1, max_epochs=config.epochs, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            ).fit(Task(), loader)  # fmt: skip

        rows = torch.utils.data.TensorDataset(inputs, labels)
        ways["Lightning Trainer, DataLoader"] = lambda: trainer(
            torch.utils.data.DataLoader(rows, batch_size=config.batch, shuffle=True)
        )
        batches = list(zip(inputs.split(config.batch), labels.split(config.batch), strict=True))
        ways["Lightning Trainer, ready batches"] = lambda: trainer(
            torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=None)
        )
    except ModuleNotFoundError:
        pass
    try:
        import keras

        def run() -> None:
            layers = [
                keras.layers.Flatten(),
                keras.layers.Dense(config.hidden, activation="relu"),
                keras.layers.Dense(10),
            ]
            net = keras.Sequential([keras.Input(inputs.shape[1:]), *layers])
            net.compile(
                keras.optimizers.AdamW(config.rate, weight_decay=config.decay),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            net.fit(inputs.numpy(), labels.numpy(), batch_size=config.batch, epochs=config.epochs, verbose=0)

        ways["Keras, on torch"] = run
    except ModuleNotFoundError:
        pass
    return ways


if __name__ == "__main__":
    sys.exit(main())
