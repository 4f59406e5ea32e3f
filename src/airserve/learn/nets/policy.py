"""A policy and the value of states, for games. Sutton and Barto 2018, chapter 13; its objective: Schulman et al. 2017,
proximal policy optimisation, arXiv:1707.06347."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.exporting import Graph, Sense
from airserve.learn.nets import Form
from airserve.model import Array


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    epochs: int = 40  # rounds of playing, then learning from what was played
    games: int = 16  # played side by side
    moves: int = 128  # of each game in a round
    passes: int = 4  # over a round's moves
    batch: int = 512
    rate: float = 3e-3  # peak learning rate
    decay: float = 1e-6  # weight decay
    discount: float = 0.99  # of a reward by each move that it is away
    trace: float = 0.95  # lambda of generalised advantages
    clip_ratio: float = 0.2  # how far the odds of a move may go from those it was played with
    entropy: float = 0.01  # nats of indecision count as so much reward

    @property
    def steps(self) -> int:
        """Of the optimizer in a round."""
        return self.passes * max(self.games * self.moves // self.batch, 1)


def build(config: Config, form: Form) -> nn.Module:
    """Two perceptrons for observations of numbers. Raises `ModelError` on other inputs."""
    (width,) = form.numbers("policy")
    return Policy(width, form.outputs, config)


class Policy(nn.Module):
    """One perceptron gives the moves' logits, another the value of the state; they share nothing."""

    answers = "move"
    keeps_last = True

    def __init__(self, observed: int, moves: int, config: Config) -> None:
        super().__init__()
        self.clip, self.entropy = config.clip_ratio, config.entropy
        self.actor, self.critic = (
            nn.Sequential(
                nn.Linear(observed, config.hidden),
                nn.Tanh(),
                nn.Linear(config.hidden, config.hidden),
                nn.Tanh(),
                nn.Linear(config.hidden, many),
            )
            for many in (moves, 1)
        )

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """(n, observed) -> logits (n, moves), value (n,)."""
        return self.actor(observed), self.critic(observed)[:, 0]

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """What was observed (n, observed); the move, its log probability then, its advantage, its return (n, 4) -> ().

        Equation 9 of Schulman et al., negated: the clipped gain, the value's squared error halved, entropy.
        """
        logits, value = self(inputs)
        log_p = logits.log_softmax(-1)
        move, before, advantage, gained = labels.float().unbind(1)
        ratio = (log_p.gather(1, move.long()[:, None])[:, 0] - before).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        indecision = -(log_p.exp() * log_p).sum(1)
        return (0.5 * (value - gained) ** 2 - gain - self.entropy * indecision).mean()

    def graphs(self, sense: Sense, rows: Array) -> dict[str, Graph]:
        few, free = torch.tensor(rows[:3]).float(), {0: "n"}
        outputs = {"logits": free, "value": free}
        return {"": Graph(self, {"observation": free}, outputs, [(few[:1],), (few,)])}
