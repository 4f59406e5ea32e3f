"""The choice of a sequence's next token: temperature, nucleus (Holtzman et al. 2020, arXiv:1904.09751), penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from airserve.model import Array
from airserve.serve.served import EngineFailed

GREEDY = 1e-5  # a temperature below it always takes the likeliest token
FIRST = 512  # likeliest tokens that are looked at before all of them are sorted


@dataclass(frozen=True)
class Sampling:
    """How a sequence is continued.

    `temperature` 0 takes the likeliest token; `top_p` keeps the fewest tokens that together are so likely. Penalties
    are taken from the logits of tokens that were generated before: `presence_penalty` once, `frequency_penalty` for
    each time. The same `seed` makes the same text; None: another each time. `stop` ends the text before any of these.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@final
class Sampler:
    """Chooses the tokens of one sequence: one random number a token, so that what others do changes nothing.

    >>> sampler = Sampler(Sampling(max_tokens=2, temperature=0, presence_penalty=2))
    >>> sampler.choose(np.array([0.0, 3.0, 2.0])), sampler.choose(np.array([0.0, 3.0, 2.0]))
    (1, 2)
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        self._counts: dict[int, int] = {}

    def choose(self, logits: Array) -> int:
        """A token for logits of shape (vocabulary,). Raises `EngineFailed` where they are no numbers."""
        s = self._sampling
        values = logits.astype(np.float64)
        if self._counts and (s.frequency_penalty or s.presence_penalty):
            tokens = np.fromiter(self._counts, np.int64)
            values[tokens] -= s.presence_penalty + s.frequency_penalty * np.fromiter(self._counts.values(), np.float64)
        best = int(values.argmax())
        if not np.isfinite(values[best]):
            raise EngineFailed("the engine gave logits that are no numbers; see the model.")
        token = best if s.temperature < GREEDY else self._draw((values - values[best]) / s.temperature)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _draw(self, values: Array) -> int:
        likely = np.exp(values)
        kept = None if self._sampling.top_p >= 1 else nucleus(likely, self._sampling.top_p)
        total = np.cumsum(likely if kept is None else likely[kept])
        at = int(np.searchsorted(total, self._rng.random() * total[-1], side="right"))
        at = min(at, len(total) - 1)
        return at if kept is None else int(kept[at])


def nucleus(likely: Array, top_p: float) -> Array:
    """The fewest tokens whose likelihoods, shape (vocabulary,), reach `top_p` of their sum; the likeliest first.

    >>> nucleus(np.array([0.1, 0.5, 0.4]), 0.6).tolist()
    [1, 2]
    """
    wanted = top_p * likely.sum()
    if len(likely) > FIRST:
        first = np.argpartition(likely, -FIRST)[-FIRST:]
        if likely[first].sum() >= wanted:
            order = first[np.argsort(-likely[first], kind="stable")]
            return order[: int(np.searchsorted(np.cumsum(likely[order]), wanted)) + 1]
    order = np.argsort(-likely, kind="stable")
    return order[: int(np.searchsorted(np.cumsum(likely[order]), wanted)) + 1]
