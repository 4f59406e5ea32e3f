"""Optimizers by name: the rule that turns a gradient into a step."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn

from airserve.learn.recipe import CHOICES

LONG = 0.95  # momentum of muon


def optimizer(name: str, groups: Sequence[Any], rate: float, momentum: float | None = None) -> torch.optim.Optimizer:
    """An optimizer over groups of weights, each with its `weight_decay`.

    `adamw`: Loshchilov and Hutter 2019, arXiv:1711.05101, second moments of 100 steps, for runs here are short.
    `adam`: Kingma and Ba 2015, arXiv:1412.6980, decay as a part of the gradient. `sgd`: with Nesterov's momentum of
    0.9, Sutskever et al. 2013. `descent`: minus rate times the gradient, Cauchy 1847. `muon`: see `Muon`.
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
    if name == "muon":
        return Muon(groups, rate, LONG if momentum is None else momentum)
    raise LookupError(f"no optimizer named {name!r}; there are {', '.join(CHOICES['optimizer'])}.")


def by_kind(name: str, module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups of weights that an optimizer tells apart: biases and norms do not decay, muon has its matrices."""
    weights = list(module.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if name != "muon":
        return groups
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices = {id(weight) for weight in weights if weight.ndim == 2} - tables
    many = groups[0]["params"]
    groups[0]["params"] = [weight for weight in many if id(weight) not in matrices]
    return [{"params": [w for w in many if id(w) in matrices], "weight_decay": decay, "matrices": True}, *groups]


@final
class Muon(torch.optim.Optimizer):
    """The momentum of a matrix, with all its singular values made about 1, is its step. Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; five steps of Newton and Schulz find it without the values.

    Steps are as large as AdamW's, 0.2 in the root mean square, so that its rates hold (Liu et al. 2025,
    arXiv:2502.16982, equation 4). AdamW moves what is no matrix, and tables of vectors.
    """

    def __init__(self, groups: Sequence[Any], rate: float, momentum: float) -> None:
        chosen = [group for group in groups if group.get("matrices") and group["params"]]
        others = [group for group in groups if not group.get("matrices") and group["params"]]
        self.parts: list[torch.optim.Optimizer] = []
        if chosen:
            self.parts.append(torch.optim.Muon(chosen, rate, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(optimizer("adamw", others, rate))
        super().__init__([group for part in self.parts for group in part.param_groups], {})  # the same dictionaries

    def step(self, closure: Any = None) -> Any:
        """One step of all parts."""
        found = closure() if closure else None
        for part in self.parts:
            part.step()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
