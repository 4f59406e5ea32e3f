"""A multilayer perceptron with one hidden layer. Rumelhart, Hinton and Williams 1986, Nature 323."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    hidden: int = 128
    epochs: int = 8
    batch: int = 256
    rate: float = 4e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A perceptron for numbers of any shape. Raises `ModelError` on ids."""
    return Perceptron(prod(form.numbers("mlp")), config.hidden, form.outputs)


class Perceptron(nn.Module):
    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.answer = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        return self.answer(torch.relu(self.hidden(x.flatten(1))))
