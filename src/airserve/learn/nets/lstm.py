"""Long short-term memory reads a text, the largest of its states answers. Hochreiter and Schmidhuber 1997, Neural
Computation 9; its gate to forget: Gers et al. 2000; largest over time: Collobert et al. 2011."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.embedding import Vectors, pairs
from airserve.learn.nets import Form


@dataclass(frozen=True)
class Config:
    width: int = 64  # of a word's vector
    hidden: int = 96
    buckets: int = 100_000  # of pairs of words; pairs that fall into one share its scores
    dropout: float = 0.5
    epochs: int = 3
    batch: int = 64
    rate: float = 5e-3  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A reader of texts. Raises `ModelError` on other inputs."""
    return Reader(nn.LSTM, form.words("lstm"), config, form.outputs)


class Reader(nn.Module):
    """Words to vectors, a recurrent layer in reading order, and the largest state over all words; beside it a bag.

    The bag gives each word and each pair of neighbours scores of its own, which tell what single words say and leave
    the rest to the layer: wide and deep, Cheng et al. 2016, arXiv:1606.07792. What follows a text's end, 0, changes
    nothing: the states before it do not know of it, those after are left out, and its scores are 0.
    """

    def __init__(self, recurrent: type[nn.Module], words: int, config: Config, outputs: int) -> None:
        super().__init__()
        self.words = Vectors(words, config.width, padding=0)
        self.recurrent = recurrent(config.width, config.hidden, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.hidden, outputs)
        self.word_scores = Vectors(words, outputs, padding=0)
        self.pair_scores = Vectors(config.buckets, outputs, padding=0)
        self.hide = nn.Dropout1d(config.dropout)  # of words and pairs in the bag

    def forward(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, outputs)."""
        states, _ = self.recurrent(self.dropout(self.words(ids)))  # (n, length, hidden)
        lowest = torch.finfo(states.dtype).min
        top = states.masked_fill((ids == 0)[..., None], lowest).amax(1).clamp(min=-1)  # states lie in -1 to 1
        return self.answer(self.dropout(top)) + self.bag(ids)

    def bag(self, ids: Tensor) -> Tensor:
        """The sum of what words and pairs say, by the root of how many words there are: (n, outputs)."""
        beside = pairs(ids, self.pair_scores.num_embeddings)
        said = self.hide(torch.cat([self.word_scores(ids), self.pair_scores(beside)], 1))  # (n, 2 length - 1, outputs)
        return said.sum(1) / (ids != 0).sum(1, keepdim=True).clamp(min=1).float().sqrt()
