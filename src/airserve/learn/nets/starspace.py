"""A question and its choices as bags of words in one space: the nearest choice answers. Wu et al. 2017, StarSpace,
arXiv:1709.03856."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.embedding import Vectors
from airserve.learn.nets import Form
from airserve.learn.words import CHOICE_ID


@dataclass(frozen=True)
class Config:
    width: int = 128  # of a word's vector
    dropout: float = 0.3  # of words
    epochs: int = 6
    batch: int = 64
    rate: float = 5e-3  # peak learning rate
    decay: float = 1e-1  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A reader of texts that are a question and, each after a mark (id 2), choices. Raises `ModelError` on others."""
    return Chooser(form.words("starspace"), config, form.outputs)


class Chooser(nn.Module):
    """Bags of vectors of words, all of one length, and how near the question's is to that of each choice.

    Words of a question and of a choice have one table, so that a word in both draws them together before anything is
    learnt; `pair` turns the question's vector into one of what would answer it.
    """

    def __init__(self, words: int, config: Config, outputs: int) -> None:
        super().__init__()
        self.words = Vectors(words, config.width, padding=0)
        self.weights = Vectors(words, 1, padding=0)  # how much a word counts: its logarithm
        self.pair = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout1d(config.dropout)
        self.scale = nn.Parameter(torch.empty(1))
        self.choices = outputs
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 10.0)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, choices): how near, times a learnt scale."""
        x = self.dropout(self.words(ids) * self.weights(ids).exp())  # (n, length, width)
        place = (ids == CHOICE_ID).long().cumsum(1)  # 0 in the question, k in the k-th choice
        there = ((ids != 0) & (ids != CHOICE_ID))[:, None]
        part = (place[:, None] == torch.arange(self.choices + 1, device=ids.device)[:, None]) & there
        bags = part.to(x.dtype) @ x  # (n, 1 + choices, width)
        asked, given = bags[:, :1], bags[:, 1:]
        turned = asked + self.pair(asked)
        return self.scale * (unit(turned) * unit(given)).sum(2)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis, and zero where they are."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)
