"""Computing: how precisely a net is trained, with how many threads, and where."""

import logging
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from airserve.learn.fitting import initialise
from airserve.learn.preparing import Prepared, build
from airserve.learn.recipe import Options, read_net
from airserve.learn.stepping import take_step
from airserve.model import ModelError

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
STEPS, ASIDE, ROUNDS = 4, 2, 5  # timed, not timed, and how often in turn, for each number of threads


def choose_threads(threads: int | str, net: str, prepared: Prepared, answer: str) -> tuple[int, dict[int, float]]:
    """As many threads as are asked for; of "auto" the fastest for a step of the net, and ms by number.

    The steps that are timed change weights that are thrown away. Raises `ModelError` for what is no number.
    """
    check_threads(threads)
    if threads != "auto":
        return int(threads), {}
    name, config, options = read_net(net)
    module = build(name, config, prepared, answer)
    fabric = launch(choose_precision(module, options))
    learner = initialise(fabric, module, config, prepared, 0, options)
    learner.module.train()
    inputs, labels = (part[: config.batch].to(fabric.device) for part in prepared.train)
    return fastest(lambda: take_step(fabric, learner, inputs, labels))


def check_threads(threads: int | str) -> None:
    """Raises `ModelError` for what is no number of threads."""
    if threads != "auto" and not (str(threads).isdecimal() and int(threads) > 0):
        raise ModelError(f"threads={threads} is neither a number from 1 nor auto.")


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


def fastest(step: Callable[[], object], most: int | None = None) -> tuple[int, dict[int, float]]:
    """The number of threads, up to `most` (the cores), with which a step takes the least time, and ms by number.

    Numbers take turns, so that a busy machine harms all alike; one counts by the median of its rounds. More threads
    must gain a tenth to be taken.
    """
    before, many = torch.get_num_threads(), sorted({1, *_powers(most or len(os.sched_getaffinity(0)))})
    spent_ms: dict[int, list[float]] = {threads: [] for threads in many}
    try:
        for _ in range(ROUNDS if len(many) > 1 else 0):
            for threads in many:
                torch.set_num_threads(threads)
                for _ in range(ASIDE):
                    step()
                started_s = time.perf_counter()
                for _ in range(STEPS):
                    step()
                spent_ms[threads].append((time.perf_counter() - started_s) / STEPS * 1e3)
    finally:
        torch.set_num_threads(before)
    found = {threads: round(float(np.median(times)), 3) for threads, times in spent_ms.items() if times}
    best = 1
    for threads, ms in found.items():
        if ms < 0.9 * found[best]:
            best = threads
    return best, found


def _powers(most: int) -> list[int]:
    """
    >>> _powers(6)
    [1, 2, 4, 6]
    """
    return sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})
