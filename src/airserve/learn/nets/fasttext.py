"""A bag of words and pairs of words classifies texts. Joulin et al. 2016, arXiv:1607.01759, fastText."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.embedding import Vectors, pairs
from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    width: int = 32  # of a word's vector
    buckets: int = 100_000  # of pairs; pairs that fall into one share its vector
    dropout: float = 0.5  # of words and pairs
    epochs: int = 6
    batch: int = 64
    rate: float = 5e-3  # peak learning rate
    decay: float = 1e-1  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A bag for texts. Raises `ModelError` on other inputs."""
    return Bag(form.words("fasttext"), config, form.outputs)


class Bag(nn.Module):
    """The mean vector of a text's words and pairs of neighbours answers; a pair's vector is found by a hash."""

    def __init__(self, words: int, config: Config, outputs: int) -> None:
        super().__init__()
        self.words = Vectors(words, config.width, padding=0)
        self.pairs = Vectors(config.buckets, config.width, padding=0)
        self.many = config.buckets
        self.dropout = nn.Dropout1d(config.dropout)
        self.answer = nn.Linear(config.width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, outputs)."""
        beside = pairs(ids, self.many)
        seen = self.dropout(torch.cat([self.words(ids), self.pairs(beside)], 1))  # (n, 2 length - 1, width)
        there = (ids != 0).sum(1) + (beside != 0).sum(1)
        return self.answer(seen.sum(1) / there.clamp(min=1)[:, None])
