"""Optimizers by name: the rule that turns a gradient into a step."""

from collections.abc import Sequence
from typing import Any

import torch

NAMES = ("adamw", "adam", "sgd", "descent")


def optimizer(name: str, groups: Sequence[Any], rate: float, momentum: float | None = None) -> torch.optim.Optimizer:
    """An optimizer of `NAMES` over groups of weights, each with its `weight_decay`.

    `adamw`: Loshchilov and Hutter 2019, arXiv:1711.05101, second moments of 100 steps, for runs here are short.
    `adam`: Kingma and Ba 2015, arXiv:1412.6980, decay as a part of the gradient. `sgd`: with Nesterov's momentum of
    0.9, Sutskever et al. 2013. `descent`: minus rate times the gradient, Cauchy 1847.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9 if momentum is None else momentum, 0.99), fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=(0.9 if momentum is None else momentum, 0.999), fused=True)
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=rate, momentum=0.9 if momentum is None else momentum, nesterov=True, fused=True
        )
    if name == "descent":
        return torch.optim.SGD(groups, lr=rate)
    raise LookupError(f"no optimizer named {name!r}; there are {', '.join(NAMES)}.")
