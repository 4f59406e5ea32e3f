"""Hidden words: a reader is to say words of a text that it does not see. Devlin et al. 2019, BERT, arXiv:1810.04805,
section 3.1; the weights of what it says are its vectors of words, Press and Wolf 2017, arXiv:1608.05859."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve.learn.balancing import UNKNOWN
from airserve.learn.forcing import shortened
from airserve.learn.losses import cross_entropy
from airserve.learn.nets import Form
from airserve.learn.pretexts import unfit
from airserve.model import ModelError

ASKED = 0.15  # part of a text's words that are asked for
HIDDEN, OTHER = 0.8, 0.1  # parts of those that are hidden, and that are another word; the rest is seen as it is


@dataclass(frozen=True)
class Config:
    epochs: int = 4
    batch: int = 64
    rate: float = 4e-3  # peak learning rate
    decay: float = 1e-2  # weight decay
    optimizer: str = "muon"


def build(config: Config, net: Any, form: Form) -> nn.Module:
    """What is learnt from texts. Raises `ModelError` for other inputs, and for a net without states of words."""
    if len(form.ids) != 1:
        raise unfit("masked", "texts", form)
    if not hasattr(net, "states"):
        raise ModelError(
            f"masked pre-training needs a net with states of words, transformer; {type(net).__name__} has none."
        )
    return Masked(net, form.ids[0])


class Masked(nn.Module):
    """A net of which only `words`, its vectors, and `states` (n, length) -> (n, length, width) are used."""

    def __init__(self, net: Any, words: int) -> None:
        super().__init__()
        self.net = net
        width = net.words.embedding_dim
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(words))

    def objective(self, inputs: Tensor) -> Tensor:
        """Nats for each word that is asked for, shape (). Texts of like length are read together."""
        found, wanted = [], []
        for rows in (inputs != 0).sum(1).argsort(stable=True).chunk(4):
            given, asked = hide(shortened(inputs[rows]), len(self.bias))
            there = asked != -100
            found.append(self.net.states(given)[there])
            wanted.append(asked[there])
        states = self.norm(F.gelu(self.dense(torch.cat(found))))
        logits = F.linear(states, self.net.words.weight, self.bias).float()
        return cross_entropy(logits, torch.cat(wanted)) if len(states) else logits.sum()


def hide(ids: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Texts (n, length) with some words hidden, and what was there: -100 where nothing is asked."""
    lots, others = torch.rand(2, *ids.shape, device=ids.device)
    asked = (ids > UNKNOWN) & (lots < ASKED)
    given = ids.masked_fill(asked & (lots < ASKED * HIDDEN), UNKNOWN)
    another = asked & (lots >= ASKED * HIDDEN) & (lots < ASKED * (HIDDEN + OTHER))
    drawn = (UNKNOWN + 1 + others * (words - UNKNOWN - 1)).to(ids.dtype)
    return torch.where(another, drawn, given), torch.where(asked, ids.long(), -100)
