"""Recurrent encoder and decoder with attention, for translation. Bahdanau, Cho and Bengio 2015, arXiv:1409.0473; one
table of vectors for both languages and for the output, Press and Wolf 2017, arXiv:1608.05859."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.attention import Additive
from airserve.learn.embedding import Vectors
from airserve.learn.exporting import Graph
from airserve.learn.forcing import Encoding, forced
from airserve.learn.nets import Form
from airserve.model import Array


@dataclass(frozen=True)
class Config:
    width: int = 128  # of a symbol's vector
    hidden: int = 192  # of the decoder's state; half of it in each direction of the encoder
    dropout: float = 0.2
    smoothing: float = 0.1  # of labels
    epochs: int = 16
    batch: int = 128
    rate: float = 5e-3  # peak learning rate
    decay: float = 1e-2  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """A translator of texts into texts of the same vocabulary. Raises `ModelError` on other inputs."""
    return Translator(form.vocabulary("seq2seq"), config)


class Translator(nn.Module):
    """Ids of a source, 0 after its end, and of the target so far; the logits of what comes next."""

    answers = "text"

    def __init__(self, symbols: int, config: Config) -> None:
        super().__init__()
        width, hidden, half = config.width, config.hidden, config.hidden // 2
        self.smoothing = config.smoothing
        self.symbols = Vectors(symbols, width, padding=0)
        self.forwards = nn.GRU(width, half, batch_first=True)
        self.backwards = nn.GRU(width, half, batch_first=True)
        self.begin = nn.Linear(2 * half, hidden)
        self.attention = Additive(hidden, 2 * half, hidden)
        self.cell = nn.GRUCell(width + 2 * half, hidden)
        self.narrow = nn.Linear(width + 2 * half + hidden, width)
        self.bias = nn.Parameter(torch.zeros(symbols))
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(n, length) -> states (n, length, hidden), the decoder's first state (n, hidden).

        The text is turned round within its own length, so that what follows its end changes nothing.
        """
        x = self.symbols(ids)
        there = (ids != 0)[..., None]
        places = torch.arange(ids.shape[1], device=ids.device)
        turned = ((ids != 0).sum(1, keepdim=True) - 1 - places).clamp(min=0)[..., None]  # its own inverse
        onwards, _ = self.forwards(x)
        back, _ = self.backwards(x.gather(1, turned.expand(-1, -1, self.symbols.embedding_dim)))
        back = back.gather(1, turned.expand(-1, -1, self.backwards.hidden_size))
        states = torch.cat([onwards, back], 2) * there
        mean = states.sum(1) / there.sum(1).clamp(min=1)
        return states, torch.tanh(self.begin(mean))

    def step(self, x: Tensor, state: Tensor, states: Tensor, keys: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """A symbol's vector (n, width), the state before, the encoder's states and keys -> all that answers, state."""
        context, _ = self.attention(state, states, there, keys)
        state = self.cell(torch.cat([x, context], 1), state)
        return torch.cat([x, context, state], 1), state

    def logits(self, x: Tensor) -> Tensor:
        """What steps found (..., width + 2 hidden) -> (..., symbols)."""
        return F.linear(self.narrow(self.dropout(x)), self.symbols.weight, self.bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Source (n, length), target so far (n, k) -> what answers after each, (n, k, width + 2 hidden)."""
        states, state = self.encode(ids)
        keys, there = self.attention.of_key(states), ids != 0
        answers = []
        for x in self.symbols(targets).unbind(1):
            answer, state = self.step(x, state, states, keys, there)
            answers.append(answer)
        return torch.stack(answers, 1)

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats for each symbol of the targets, given the ones before. Labels (n, k) begin with their `BEGIN`."""
        return forced(self, inputs, labels, self.smoothing if self.training else 0.0)

    def graphs(self, sense: Callable[[nn.Module], nn.Module], rows: Array) -> dict[str, Graph]:
        """The encoder, and one step of the decoder, as `translating.Translator` takes them."""
        sources = [torch.tensor(rows[:1]), torch.tensor(rows[:2]), torch.tensor(rows[:3, :4])]
        encoder = Encoding(self)
        batch, length = {0: "n"}, {0: "n", 1: "length"}
        steps = []
        for ids in sources:
            states, state = self.encode(ids)
            steps.append((ids[:, :1], ids, states.detach(), state.detach()))
        return {
            "encoder": Graph(
                encoder,
                {"input_ids": length},
                {"encoder_hidden_states": length, "present.state": batch},
                [(ids,) for ids in sources],
            ),
            "decoder": Graph(
                Stepping(self),
                {"input_ids": batch, "source_ids": length, "encoder_hidden_states": length, "past.state": batch},
                {"logits": batch, "present.state": batch},
                steps,
            ),
        }


class Stepping(nn.Module):
    """One step of the decoder: the last symbol (n, 1), the source, its states, the state -> logits, the new state."""

    def __init__(self, net: Translator) -> None:
        super().__init__()
        self.net = net

    def forward(self, symbol: Tensor, ids: Tensor, states: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        x = net.symbols(symbol)[:, 0]
        answer, state = net.step(x, state, states, net.attention.of_key(states), ids != 0)
        return net.logits(answer)[:, None], state
