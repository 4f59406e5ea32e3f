"""A Transformer with encoder and decoder, for translation. Vaswani et al. 2017, arXiv:1706.03762; norms first, one
table of vectors for both languages and for the output. The decoder's step keeps keys and values of earlier symbols."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.attention import Block, MultiHead, causal_mask, padding_mask, scaled_dot_product
from airserve.learn.embedding import SMALL, Vectors
from airserve.learn.exporting import Graph
from airserve.learn.forcing import Encoding, forced
from airserve.learn.nets import Form
from airserve.learn.nets.transformer import places
from airserve.model import Array

FARTHEST = 512  # places that have a vector


@dataclass(frozen=True)
class Config:
    width: int = 128
    heads: int = 4
    layers: int = 2  # of the encoder, and of the decoder
    dropout: float = 0.1
    smoothing: float = 0.1  # of labels
    epochs: int = 16
    batch: int = 128
    rate: float = 3e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A translator of texts into texts of the same vocabulary. Raises `ModelError` on other inputs."""
    return Translator(form.vocabulary("seq2seq-transformer"), config)


class Translator(nn.Module):
    """Ids of a source, 0 after its end, and of the target so far; the logits of what comes next."""

    answers = "text"
    wide = True

    def __init__(self, symbols: int, config: Config) -> None:
        super().__init__()
        self.smoothing = config.smoothing
        self.symbols = Vectors(symbols, config.width, padding=0)
        size = (config.width, config.heads, config.dropout)
        self.encoder = nn.ModuleList(Block(*size) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderBlock(*size) for _ in range(config.layers))
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(symbols))
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("places", SMALL * places(FARTHEST, config.width, torch.device("cpu")), persistent=False)

    def encode(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, length, width)."""
        x = self.dropout(self.symbols(ids) + self.places[: ids.shape[1]])
        mask = padding_mask(ids)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.norm1(x)

    def decode(
        self, targets: Tensor, ids: Tensor, states: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Symbols (n, k) after those whose keys and values (n, heads, before, width / heads) each layer has kept.

        -> what comes after each, (n, k, width), and keys and values with those of the k.
        """
        before = past[0][0].shape[2]
        at = torch.arange(targets.shape[1], device=ids.device) + before
        x = self.dropout(self.symbols(targets) + F.embedding(at, self.places))
        seen, there = causal_mask(at, torch.arange(before + targets.shape[1], device=ids.device)), padding_mask(ids)
        present = []
        for layer, kept in zip(self.decoder, past, strict=True):
            x, new = layer(x, seen, states, there, kept)
            present.append(new)
        return self.norm2(x), present

    def nothing(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """What the layers have kept before the first symbol."""
        width, heads = self.symbols.embedding_dim, self.decoder[0].attention.heads
        empty = self.symbols.weight.new_zeros(rows, heads, 0, width // heads)
        return [(empty, empty) for _ in self.decoder]

    def logits(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., symbols)."""
        return F.linear(x, self.symbols.weight, self.bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Source (n, length), target so far (n, k) -> what comes after each of its symbols, (n, k, width)."""
        return self.decode(targets, ids, self.encode(ids), self.nothing(len(ids)))[0]

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats for each symbol of the targets, given the ones before. Labels (n, k) begin with their `BEGIN`."""
        return forced(self, inputs, labels, self.smoothing if self.training else 0.0)

    def graphs(self, sense: Callable[[nn.Module], nn.Module], rows: Array) -> dict[str, Graph]:
        """The encoder, and one step of the decoder, as `translating.Translator` takes them."""
        sources = [torch.tensor(rows[:1]), torch.tensor(rows[:2]), torch.tensor(rows[:3, :4])]
        length, kept = {0: "n", 1: "length"}, {0: "n", 2: "past"}
        names = [f"{k}.{what}" for k in range(len(self.decoder)) for what in ("key", "value")]
        steps = []
        for before, ids in enumerate(sources):
            states = self.encode(ids).detach()
            past = self.decode(ids[:, :before], ids, states, self.nothing(len(ids)))[1] if before else self.nothing(1)
            steps.append((ids[:, :1], ids, states, *(part.detach() for pair in past for part in pair)))
        past_inputs = {f"past.{name}": kept for name in names}
        present = {f"present.{name}": {0: "n", 2: "present"} for name in names}
        return {
            "encoder": Graph(
                Encoding(self), {"input_ids": length}, {"encoder_hidden_states": length}, [(ids,) for ids in sources]
            ),
            "decoder": Graph(
                Stepping(self),
                {"input_ids": {0: "n"}, "source_ids": length, "encoder_hidden_states": length, **past_inputs},
                {"logits": {0: "n"}, **present},
                steps[::-1],  # traced with a past that is not empty
            ),
        }


class DecoderBlock(nn.Module):
    """One layer: attention to the symbols so far, attention to the source, a perceptron at each place."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.to_source = MultiHead(width, heads), MultiHead(width, heads)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, seen: Tensor, states: Tensor, there: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(n, k, width) -> the same, and keys and values (n, heads, before + k, width / heads)."""
        own, y = self.attention, self.norm1(x)
        key = torch.cat([past[0], own.split(own.key(y))], 2)
        value = torch.cat([past[1], own.split(own.value(y))], 2)
        y = own.answer(own.join(scaled_dot_product(own.split(own.query(y)), key, value, seen)))
        x = x + self.dropout(y)
        x = x + self.dropout(self.to_source(self.norm2(x), states, there))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm3(x))))), (key, value)


class Stepping(nn.Module):
    """One step of the decoder: the last symbol (n, 1), the source, its states, keys and values -> logits, and both."""

    def __init__(self, net: Translator) -> None:
        super().__init__()
        self.net = net

    def forward(self, symbol: Tensor, ids: Tensor, states: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(past[::2], past[1::2], strict=True))
        answer, present = self.net.decode(symbol, ids, states, pairs)
        return (self.net.logits(answer[:, 0])[:, None], *(part for pair in present for part in pair))
