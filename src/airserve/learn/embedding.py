"""Vectors of ids: of words, of users, of films."""

from typing import Any

import torch
from torch import Tensor, nn

SMALL = 0.1  # deviation of a vector's numbers at first


FACTOR = 1_000_003  # a prime, so that pairs of common words seldom share a bucket


def pairs(ids: Tensor, buckets: int) -> Tensor:
    """Each word with the next as one id below `buckets`, by a hash: (n, length) -> (n, length - 1); 0 past the end.

    >>> pairs(torch.tensor([[5, 6, 5, 0]]), 10).tolist()
    [[9, 3, 0]]
    """
    before, after = ids[:, :-1].long(), ids[:, 1:].long()
    hashed = (before * FACTOR + after) % (buckets - 1) + 1
    return torch.where((before != 0) & (after != 0), hashed, torch.zeros_like(hashed))


class Vectors(nn.Embedding):
    """Vectors that are small at first, so that an id that is seldom seen says next to nothing; torch's begin at 1.

    (n, ...) -> (n, ..., width); the vector of `padding` is 0 and stays so. `ridge` draws the vectors of a batch to
    zero, once for each row that uses them: those of common ids, which have more to say for themselves, as often
    as they speak (Koren et al. 2009, equation 5). Weight decay would draw all of them alike.
    """

    def __init__(self, many: int, width: int, padding: int | None = None, ridge: float = 0.0) -> None:
        super().__init__(many, width, padding_idx=padding)
        self.ridge = ridge

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=SMALL)
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        found = super().forward(ids)
        return Ridge.apply(found, self.ridge) if self.training and self.ridge else found


class Ridge(torch.autograd.Function):
    """What it is given; its gradient is as if the loss had ridge / 2 times the mean over rows of x squared in it."""

    @staticmethod
    def forward(context: Any, x: Tensor, ridge: float) -> Tensor:
        context.save_for_backward(x)
        context.ridge = ridge
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = context.saved_tensors
        return gradient + context.ridge / len(x) * x, None
