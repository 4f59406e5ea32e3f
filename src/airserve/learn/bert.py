"""BERT's encoder and its relatives, for weights that others trained. Devlin et al. 2019, arXiv:1810.04805.

RoBERTa (Liu et al. 2019, arXiv:1907.11692) counts places from the id that pads; DistilBERT (Sanh et al. 2019,
arXiv:1910.01108) has no segments and no pooler. Norms follow the sums here, and lead in `attention.Block`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.attention import MultiHead

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class Shape:
    """What a folder's config.json says of the encoder."""

    words: int
    places: int
    width: int
    wide: int  # of the perceptron at each place
    layers: int
    heads: int
    segments: int = 2  # kinds of text in one; 0 where the net has none
    pad: int = 0
    from_pad: bool = False  # places are counted from pad + 1, and what pads has none
    epsilon: float = 1e-12
    activation: str = "gelu"


class Encoder(nn.Module):
    """Ids (n, length) -> vectors (n, length, width); ids of `pad` are looked at by nobody."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.words, shape.width)
        self.places = nn.Embedding(shape.places, shape.width)
        self.segments = nn.Embedding(shape.segments, shape.width) if shape.segments else None
        self.norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor) -> Tensor:
        there = ids != self.shape.pad
        if self.shape.from_pad:
            at = there.long().cumsum(1) * there.long() + self.shape.pad
        else:
            at = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.words(ids) + self.places(at)
        if self.segments is not None:
            x = x + self.segments.weight[0]  # one text: all of it is of the first kind
        x, mask = self.norm(x), there[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Layer(nn.Module):
    """Attention, then a perceptron at each place; each is added to what it saw and normed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = MultiHead(shape.width, shape.heads)
        self.norm1, self.norm2 = (nn.LayerNorm(shape.width, shape.epsilon) for _ in range(2))
        self.widen, self.narrow = nn.Linear(shape.width, shape.wide), nn.Linear(shape.wide, shape.width)
        self.activation = ACTIVATIONS[shape.activation]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width), bool (n, 1, 1, length) -> (n, length, width)."""
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.narrow(self.activation(self.widen(x))))


class States(nn.Module):
    """The vector of every word: (n, length) -> (n, length, width)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(ids)


class Sentence(nn.Module):
    """One vector of a text, the mean over its words or its first word's: (n, length) -> (n, width).

    Reimers and Gurevych 2019, arXiv:1908.10084.
    """

    def __init__(self, encoder: Encoder, first: bool, unit: bool) -> None:
        super().__init__()
        self.encoder, self.first, self.unit = encoder, first, unit

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(ids)
        if self.first:
            found = x[:, 0]
        else:
            there = (ids != self.encoder.shape.pad)[..., None].to(x.dtype)
            found = (x * there).sum(1) / there.sum(1).clamp(min=1e-9)
        return F.normalize(found, dim=1) if self.unit else found


class Classifier(nn.Module):
    """Classes by the first word's vector through `before`, or of every word where there is none."""

    def __init__(self, encoder: Encoder, outputs: int, before: bool, activation: str, each: bool = False) -> None:
        super().__init__()
        width = encoder.shape.width
        self.encoder, self.each = encoder, each
        self.before = nn.Linear(width, width) if before else None
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.answer = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, outputs), or (n, length, outputs) with `each`."""
        x = self.encoder(ids)
        x = x if self.each else x[:, 0]
        return self.answer(x if self.before is None else self.activation(self.before(x)))


class Filler(nn.Module):
    """What may stand at each place: (n, length) -> (n, length, words). The words' vectors are the answer's weights."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        shape = encoder.shape
        self.encoder = encoder
        self.before, self.norm = nn.Linear(shape.width, shape.width), nn.LayerNorm(shape.width, shape.epsilon)
        self.activation = ACTIVATIONS[shape.activation]
        self.bias = nn.Parameter(torch.zeros(shape.words))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.activation(self.before(self.encoder(ids))))
        return x @ self.encoder.words.weight.T + self.bias


def shape(config: Mapping[str, Any]) -> Shape:
    """The shape that config.json states. Raises KeyError where it does not."""
    if config["model_type"] == "distilbert":
        return Shape(
            config["vocab_size"], config["max_position_embeddings"], config["dim"], config["hidden_dim"],
            config["n_layers"], config["n_heads"], 0, config.get("pad_token_id") or 0,
            activation=config.get("activation", "gelu"),
        )  # fmt: skip
    counted = config["model_type"] != "bert"
    pad = config.get("pad_token_id")
    return Shape(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config.get("type_vocab_size", 2),
        (1 if counted else 0) if pad is None else pad,
        counted,
        config.get("layer_norm_eps", 1e-12),
        config.get("hidden_act", "gelu"),
    )


# What a weight is called here, and there: in BERT and RoBERTa, in DistilBERT.
LAYER = {
    "attention.query": ("attention.self.query", "attention.q_lin"),
    "attention.key": ("attention.self.key", "attention.k_lin"),
    "attention.value": ("attention.self.value", "attention.v_lin"),
    "attention.answer": ("attention.output.dense", "attention.out_lin"),
    "norm1": ("attention.output.LayerNorm", "sa_layer_norm"),
    "widen": ("intermediate.dense", "ffn.lin1"),
    "narrow": ("output.dense", "ffn.lin2"),
    "norm2": ("output.LayerNorm", "output_layer_norm"),
}


def encoder_weights(shape: Shape, family: str) -> dict[str, str]:
    """The name of each of an Encoder's weights in a file of this family, without the family's prefix."""
    which = int(family == "distilbert")
    named = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    if shape.segments:
        named["segments.weight"] = "embeddings.token_type_embeddings.weight"
    stack = ("encoder.layer", "transformer.layer")[which]
    for k in range(shape.layers):
        for ours, theirs in LAYER.items():
            for part in ("weight", "bias"):
                named[f"layers.{k}.{ours}.{part}"] = f"{stack}.{k}.{theirs[which]}.{part}"
    return named
