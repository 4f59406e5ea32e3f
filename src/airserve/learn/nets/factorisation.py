"""Matrix factorisation: a rating is a mean, two biases and a product of two vectors. Koren et al. 2009, Computer 42."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.embedding import Vectors
from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    width: int = 16  # of a user's and a film's vector
    epochs: int = 12
    batch: int = 512
    rate: float = 4e-3  # peak learning rate
    decay: float = 1e-4  # weight decay
    ridge: float = 0.2  # how strongly a rating draws its vectors and biases to zero


def build(config: Config, form: Form) -> nn.Module:
    """A factorisation of (users, films). Raises `ModelError` on other inputs."""
    return Factorisation(*form.pairs("factorisation"), config.width, config.ridge, form.middle)


class Factorisation(nn.Module):
    def __init__(self, users: int, films: int, width: int, ridge: float, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean]))
        self.user, self.film = Vectors(users, width, ridge=ridge), Vectors(films, width, ridge=ridge)
        self.user_bias, self.film_bias = Vectors(users, 1, ridge=ridge), Vectors(films, 1, ridge=ridge)

    def forward(self, pairs: Tensor) -> Tensor:
        """(n, 2), a user and a film -> (n, 1), the rating."""
        user, film = pairs[:, 0], pairs[:, 1]
        product = (self.user(user) * self.film(film)).sum(1, keepdim=True)
        return self.mean + self.user_bias(user) + self.film_bias(film) + product
