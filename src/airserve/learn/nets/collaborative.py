"""Neural collaborative filtering: a product and a perceptron over a user's and a film's vector. He et al. 2017,
arXiv:1708.05031, section 3.4; for ratings in place of clicks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.embedding import Vectors
from airserve.learn.nets import Form
from airserve.learn.nets.factorisation import Factorisation


@dataclass(frozen=True)
class Config:
    width: int = 16  # of each vector
    hidden: int = 32
    dropout: float = 0.3
    epochs: int = 10
    batch: int = 512
    rate: float = 4e-3  # peak learning rate
    decay: float = 1.0  # weight decay
    ridge: float = 0.2  # how strongly a rating draws its vectors and biases to zero


def build(config: Config, form: Form) -> nn.Module:
    """Collaborative filtering of (users, films). Raises `ModelError` on other inputs."""
    return Collaborative(*form.pairs("collaborative"), config, form.middle)


class Collaborative(nn.Module):
    def __init__(self, users: int, films: int, config: Config, mean: float) -> None:
        super().__init__()
        self.product = Factorisation(users, films, config.width, config.ridge, mean)
        self.user, self.film = (Vectors(many, config.width, ridge=config.ridge) for many in (users, films))
        self.hidden = nn.Linear(2 * config.width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """(n, 2), a user and a film -> (n, 1), the rating."""
        both = torch.cat([self.user(pairs[:, 0]), self.film(pairs[:, 1])], 1)
        return self.product(pairs) + self.answer(self.dropout(torch.relu(self.hidden(both))))
