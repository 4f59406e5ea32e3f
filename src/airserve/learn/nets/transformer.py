"""A Transformer's encoder that classifies texts. Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2019, BERT."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.attention import Block, padding_mask
from airserve.learn.embedding import SMALL, Vectors
from airserve.learn.nets import Form
from airserve.model import ModelError


@dataclass(frozen=True)
class Config:
    width: int = 64
    heads: int = 4
    layers: int = 2
    dropout: float = 0.3
    epochs: int = 4
    batch: int = 64
    rate: float = 2e-3  # peak learning rate
    decay: float = 5e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """An encoder of texts of any length. Raises `ModelError` on other inputs."""
    return Encoder(form.words("transformer"), config, form.outputs)


class Encoder(nn.Module):
    """Words and their places to vectors, layers of attention among words, and the mean over words answers."""

    def __init__(self, words: int, config: Config, outputs: int) -> None:
        super().__init__()
        self.words = Vectors(words, config.width, padding=0)
        self.layers = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(config.width, outputs)

    def states(self, ids: Tensor) -> Tensor:
        """Of every word: (n, length) -> (n, length, width)."""
        x = self.dropout(self.words(ids) + SMALL * places(ids.shape[1], self.words.embedding_dim, ids.device))
        mask = padding_mask(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, outputs)."""
        there = (ids != 0)[..., None].float()  # (n, length, 1)
        mean = (self.states(ids) * there).sum(1) / there.sum(1).clamp(min=1)
        return self.answer(self.dropout(mean))


def places(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of a place, of wavelengths from 2 pi to 20,000 pi: (length, width). Section 3.5.

    Raises `ModelError` for a width that is odd.
    """
    if width % 2:
        raise ModelError(f"width={width} is odd, but places are pairs of a sine and a cosine; give an even one.")
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
