"""A Transformer's decoder that continues texts. Radford et al. 2019, GPT-2; places by rotation, Su et al. 2021,
arXiv:2104.09864; norms before each layer and of queries and keys, Henry et al. 2020, arXiv:2010.04245."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.attention import check_heads
from airserve.learn.exporting import Graph, Sense
from airserve.learn.losses import linear_cross_entropy
from airserve.learn.nets import Form
from airserve.model import Array

Past = Sequence[tuple[Tensor, Tensor]]  # keys and values of each layer, (n, heads, past, width / heads)
FORBIDDEN = -1e4  # added to the score of a place that may not be looked at


@dataclass(frozen=True)
class Config:
    width: int = 160
    heads: int = 2
    layers: int = 2
    dropout: float = 0.0
    epochs: int = 2
    batch: int = 16
    rate: float = 4e-3  # peak learning rate
    decay: float = 1e-1  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A decoder over texts of any length. Raises `ModelError` on other inputs."""
    check_heads(config.width, config.heads, each=2)  # half of a head turns against the other
    return GPT(form.words("gpt"), config)


class GPT(nn.Module):
    """Tokens to vectors, layers of attention to what came before, and the same vectors say what comes next.

    The exported graph has the names of Optimum's decoders: with keys and values of the tokens before (`past`, which may
    be none) it reads only the new ones.
    """

    answers = "continuation"
    wide = True

    def __init__(self, words: int, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.words = Words(words, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Ids and places (n, new), mask (n, past + new) with 0 where there is no token -> (n, new, words), new past."""
        states, present = self.states(ids, mask, places, past)
        return F.linear(states, self.words.weight), present

    def states(self, ids: Tensor, mask: Tensor, places: Tensor, past: Past) -> tuple[Tensor, Past]:
        """The same, without the last layer's product with the words' vectors: (n, new, width), new past."""
        x = self.dropout(self.words(ids))
        turn = rotation(places, x.shape[-1] // self.heads)
        bias = causal_bias(mask, ids.shape[1])
        present = []
        for layer, before in zip(self.layers, past, strict=True):
            x, now = layer(x, bias, turn, before)
            present.append(now)
        return self.norm(x), present

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats to say each next token: (n, length), (n, length) -> ()."""
        mask, places = torch.ones_like(inputs), torch.arange(inputs.shape[1], device=inputs.device)[None]
        nothing = self.words.weight.new_zeros(len(inputs), self.heads, 0, self.words.embedding_dim // self.heads)
        states, _ = self.states(inputs, mask, places, [(nothing, nothing)] * len(self.layers))
        return linear_cross_entropy(states.flatten(0, 1), self.words.weight, labels.flatten())

    def graphs(self, sense: Sense, rows: Array) -> dict[str, Graph]:
        """One step: the new tokens' logits, and keys and values to hand in with the next ones."""
        free = {0: "batch", 2: "past"}
        inputs = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "total"}}
        inputs |= {"position_ids": {0: "batch", 1: "sequence"}}
        outputs = {"logits": {0: "batch", 1: "sequence"}}
        for k in range(len(self.layers)):
            inputs |= {f"past_key_values.{k}.{part}": free for part in ("key", "value")}
            outputs |= {f"present.{k}.{part}": {0: "batch", 2: "total"} for part in ("key", "value")}
        examples = [self.example(rows, *sizes) for sizes in ((2, 3, 2), (1, 5, 0), (3, 1, 4), (2, 1, 0))]
        return {"": Graph(Step(self), inputs, outputs, examples)}

    def example(self, rows: Array, many: int, new: int, before: int) -> list[Tensor]:
        """Inputs of a step of `many` texts, the first of which begins a token later than the others."""
        ids = torch.tensor(np.resize(rows, (many, new)).astype(np.int64))
        mask = torch.ones(many, before + new, dtype=torch.int64)
        if before:
            mask[0, 0] = 0
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        width = self.words.embedding_dim // self.heads
        draws = torch.Generator().manual_seed(0)
        past = [torch.randn(many, self.heads, before, width, generator=draws) for _ in range(2 * len(self.layers))]
        return [ids, mask, places, *past]


class Step(nn.Module):
    """The decoder with its past as single inputs and outputs, as files have it."""

    def __init__(self, net: GPT) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        logits, present = self.net(ids, mask, places, list(zip(past[::2], past[1::2], strict=True)))
        return logits, *(part for pair in present for part in pair)


class Layer(nn.Module):
    """Attention to what came before, then a perceptron at each place, with ways around both."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_query, self.norm_key = (nn.LayerNorm(width // config.heads, bias=False) for _ in range(2))
        self.asked = nn.Linear(width, 3 * width, bias=False)
        self.answer, self.narrow = Silent(width, width), Silent(4 * width, width)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, turn: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(n, new, width), bias (n, 1, new, past + new) -> (n, new, width), keys and values of all places so far."""
        query, key, value = self.asked(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(self.norm_query(query), turn), rotate(self.norm_key(key), turn)
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        found = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.answer(found))
        x = x + self.dropout(self.narrow(F.relu(self.wide(self.norm2(x))).square()))
        return x, (key, value)


class Words(nn.Embedding):
    """Vectors of tokens, small at first: they are also the weights of the answer."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class Silent(nn.Linear):
    """What a layer adds: nothing at first, so that a deep net begins as a shallow one."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1e-3)


def causal_bias(mask: Tensor, new: int) -> Tensor:
    """0 where a new token may look, `FORBIDDEN` else: mask (n, total) -> (n, 1, new, total).

    >>> (causal_bias(torch.tensor([[0, 1, 1]]), 2) == 0).int()[0, 0].tolist()
    [[0, 1, 0], [0, 1, 1]]
    """
    order = torch.arange(mask.shape[1], device=mask.device)
    seen = (order[None, :] <= order[mask.shape[1] - new :, None]) & (mask[:, None, None, :] != 0)
    return (~seen).float() * FORBIDDEN


def rotation(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which places turn: (n, new) -> twice (n, 1, new, width / 2)."""
    rates = 10_000.0 ** (torch.arange(0, width, 2, device=places.device) / -width)
    angles = places[:, None, :, None].float() * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair of numbers turned by its place's angle, so that a product of two knows how far they are apart."""
    one, other = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
