"""Against imbalance: rare classes drawn more often, and their rows varied, so that a net does not learn them by heart.

Class weights, the third way, stand in losses.py. Of all three: He and Garcia 2009, IEEE TKDE 21(9).
"""

import torch
from torch import Tensor

from airserve.learn.losses import class_weights

UNKNOWN = 1  # the id of any other word


def draw(labels: Tensor, classes: int, resample: float, order: torch.Generator) -> Tensor:
    """As many rows as there are, drawn with replacement: with `resample` 1 all classes as often, with 0 as they are."""
    weights = class_weights(labels, classes, resample)[labels]
    return torch.multinomial(weights, len(labels), replacement=True, generator=order)


def rare(labels: Tensor, classes: int) -> Tensor:
    """Which classes have fewer rows than the mean: bool, shape (classes,).

    >>> rare(torch.tensor([0, 0, 0, 1]), 2).tolist()
    [False, True]
    """
    counts = torch.bincount(labels, minlength=classes)
    return counts < counts.float().mean()


def vary(inputs: Tensor, which: Tensor, amount: float, order: torch.Generator) -> Tensor:
    """A batch whose rows of `which`, bool (n,), are others of their kind; the rest as it was.

    Texts: each word is hidden with probability `amount`. Pictures (n, height, width, ...): moved by up to a pixel each
    way. Rows of a table: noise of so many standard deviations.
    """
    if not inputs.is_floating_point():
        hidden = (torch.rand(inputs.shape, generator=order) < amount) & (inputs != 0) & which[:, None]
        return inputs.masked_fill(hidden, UNKNOWN)
    shape = (-1, *[1] * (inputs.ndim - 1))
    if inputs.ndim == 2:
        return torch.where(which.view(shape), inputs + amount * torch.randn(inputs.shape, generator=order), inputs)
    down, right = (torch.randint(-1, 2, (), generator=order).item() for _ in range(2))
    return torch.where(which.view(shape), inputs.roll((int(down), int(right)), (1, 2)), inputs)
