"""Teacher forcing: a translator is shown what came before and says what comes next. Williams and Zipser 1989.

Rows of like length are computed together, at few different lengths, for oneDNN makes a kernel for each shape.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from airserve.learn.losses import cross_entropy

STRIDE = 4  # lengths are multiples of it


def forced(net: Any, inputs: Tensor, labels: Tensor, smoothing: float, parts: int = 4) -> Tensor:
    """Nats for each symbol of the targets, given the ones before: shape ().

    Labels (n, k) begin with what begins a text and are 0 after it. The net takes sources (n, length) and targets
    (n, k - 1) and gives what answers, whose `logits` are of the symbols.
    """
    total = torch.zeros((), device=inputs.device)
    for sources, targets in by_length(inputs, labels, parts):
        wanted = targets[:, 1:].masked_fill(targets[:, 1:] == 0, -100)
        logits = net.logits(net(sources, targets[:, :-1])).float()
        total = total + cross_entropy(logits, wanted, smoothing=smoothing) * (wanted != -100).sum()
    return total / (labels[:, 1:] != 0).sum()


def by_length(inputs: Tensor, labels: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in parts of rows of like length, without most of the places that no row of a part fills."""
    rows = ((labels != 0).sum(1) * inputs.shape[1] + (inputs != 0).sum(1)).argsort(stable=True)
    for part in rows.chunk(parts):
        yield shortened(inputs[part]), shortened(labels[part], 1)


def shortened(ids: Tensor, more: int = 0) -> Tensor:
    """Without places that no row fills; as long as a multiple of `STRIDE` and so many `more`.

    >>> shortened(torch.tensor([[5, 6, 0, 0, 0, 0], [7, 8, 9, 0, 0, 0]])).tolist()
    [[5, 6, 0, 0], [7, 8, 9, 0]]
    """
    longest = int((ids != 0).sum(1).max()) - more
    return ids[:, : STRIDE * max(-(-longest // STRIDE), 1) + more]


class Encoding(nn.Module):
    """The encoder of a translator alone."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        found: Tensor | tuple[Tensor, ...] = self.net.encode(ids)
        return found
