"""A pole to be held upright on a cart, CartPole-v1 of gymnasium. Barto, Sutton and Anderson 1983; Towers et al. 2024.

A move pushes the cart to the left or the right; each move before the pole falls counts 1, and 500 moves are the end.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.reinforcement import episodes
from airserve.learn.tasks import Baseline, Data, Split, TaskError
from airserve.model import Array, Engine
from airserve.registry import Registry

MOVES = ("left", "right")
EPISODES = 100  # that are scored
ROWS = 300  # of each split


def load() -> Data:
    """What is observed in games of random moves, (n, 4): place and speed of the cart, angle and turning of the pole.

    Learning plays its own games; these rows tell a net's form, and are the samples of its Model.
    """
    _, observed = episodes(at_random, environment(10), 10 * EPISODES)
    train, validation, test = (Split(part, np.zeros(ROWS, np.int64)) for part in np.split(observed[: 3 * ROWS], 3))
    metric = Metric("mean_return")
    return Data("cartpole", MOVES, train, validation, test, metric=metric, answer="move", scale=(0.0, 1.0))


def environment(games: int) -> Any:
    """Games side by side, a gymnasium vector environment. Raises `TaskError` when the package is absent."""
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise TaskError("CartPole is played with the package gymnasium: `pip install gymnasium`.") from None
    return gymnasium.make_vec("CartPole-v1", num_envs=games, vectorization_mode="vector_entry_point")


def baseline(data: Data) -> Baseline:
    """Moves at random."""
    return Baseline("random moves", float(episodes(at_random, environment(10), EPISODES)[0].mean()))


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """The return of 100 games by the exported graph's most probable moves, in the mean and in the worst."""
    returns, _ = episodes(lambda rows: parts[""].run([rows])[0].argmax(axis=1), environment(10), EPISODES)
    return {"mean_return": float(returns.mean()), "worst_return": float(returns.min())}


def at_random(rows: Array) -> Array:
    """A move for each row, that repeats for the same rows."""
    return np.random.default_rng(np.abs(rows).view(np.uint32).ravel()).integers(0, len(MOVES), len(rows))
