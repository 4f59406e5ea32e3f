"""A perceptron that sees each number as waves of it: periodic, linear, ReLU. Gorishniy, Rubachev and Babenko 2022,
arXiv:2203.05556 (MLP-PLR), section 3.3."""

import math
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    waves: int = 16  # frequencies of each number
    spread: float = 0.3  # deviation of the frequencies at first, in waves per deviation of the number
    width: int = 8  # of a number's vector
    hidden: int = 128
    dropout: float = 0.2
    epochs: int = 10
    batch: int = 256
    rate: float = 2e-3  # peak learning rate
    decay: float = 1e-1  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A perceptron for numbers of any shape. Raises `ModelError` on ids."""
    return PeriodicPerceptron(prod(form.numbers("mlp-plr")), config, form.outputs)


class PeriodicPerceptron(nn.Module):
    """Each number becomes a vector, by frequencies of its own and one layer that all share; two layers answer.

    A step at some value of a number, as where a gain of so many dollars tells an income, is thus as easy to learn as a
    slope; a number that is 0 or 1 stays as telling as it was, however rare its 1.
    """

    def __init__(self, numbers: int, config: Config, outputs: int) -> None:
        super().__init__()
        self.spread = config.spread
        self.frequencies = nn.Parameter(torch.empty(numbers, config.waves))
        self.vector = nn.Linear(2 * config.waves, config.width)
        self.hidden = nn.Linear(numbers * config.width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.hidden, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.frequencies, std=self.spread)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs)."""
        angles = 2 * math.pi * self.frequencies * x.flatten(1)[..., None]  # (n, numbers, waves)
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        vectors = torch.relu(self.vector(waves)).flatten(1)
        return self.answer(self.dropout(torch.relu(self.hidden(self.dropout(vectors)))))
