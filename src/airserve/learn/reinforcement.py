"""Reinforcement: a net learns a game by playing it, in rounds: play side by side, then learn from what was played.

Schulman et al. 2017, arXiv:1707.06347, with the steps of stepping.py; advantages as Schulman et al. 2016,
arXiv:1506.02438.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from airserve.model import Array
from airserve.progress import bar

if TYPE_CHECKING:  # a task that is played needs no torch to be listed
    from lightning_fabric import Fabric

    from airserve.learn.stepping import Learner

SEED_OF_EPISODES = 1_000_000  # scored games begin from other states than those of learning
SEED_OF_VALIDATION = 2_000_000  # and those by which the best round is chosen from others again
JUDGED = 16  # games after each round


def play_and_learn(
    fabric: "Fabric", learner: "Learner", environment: Callable[[int], Any], config: Any, seed: int, progress: bool
) -> list[dict[str, float]]:
    """Rounds of `config.moves` moves in each of some games, of a gymnasium vector environment made for so many.

    What is learnt can be lost again, so the weights of the round that did best in games of its own are kept. Returns
    after each round the mean loss, the mean return of these games by the most probable moves, and CPU-seconds so far.
    Raises `ModelError` at the first step whose loss is no number.
    """
    import torch

    from airserve.learn.stepping import refuse_divergence, take_step

    draws = torch.Generator().manual_seed(seed)
    games, judging = environment(config.games), environment(JUDGED)
    observed, _ = games.reset(seed=seed)
    curve: list[dict[str, float]] = []
    fresh = np.zeros(games.num_envs, bool)
    best, best_mean = learner.module.state_dict(), -np.inf

    def surest(rows: Array) -> Array:
        with torch.no_grad():
            logits = learner.module(torch.from_numpy(rows).to(fabric.device))[0]
        moves: Array = logits.argmax(-1).cpu().numpy()
        return moves

    started_s = time.process_time()
    with bar("round 1", config.epochs, wanted=progress, stays=True) as done:
        for epoch in range(config.epochs):
            learner.module.train()
            played: list[list[Array]] = []
            for _ in range(config.moves):
                with torch.no_grad():
                    state = torch.tensor(observed, dtype=torch.float32, device=fabric.device)
                    logits, value = (part.cpu() for part in learner.module(state))
                    log_p = logits.log_softmax(-1)
                    move = torch.multinomial(log_p.exp(), 1, generator=draws)
                took = log_p.gather(1, move)[:, 0].numpy()
                after, reward, lost, late, _ = games.step(move[:, 0].numpy())
                played.append([observed, move[:, 0].numpy(), took, value.numpy(), reward, lost, lost | late, fresh])
                observed, fresh = after, lost | late
            with torch.no_grad():
                state = torch.tensor(observed, dtype=torch.float32, device=fabric.device)
                last = learner.module(state)[1].cpu().numpy()
            lesson = lessons([np.stack(each) for each in zip(*played, strict=True)], last, config)
            inputs, labels = (torch.tensor(part, device=fabric.device) for part in lesson)
            seen = []
            for _ in range(config.passes):
                order = torch.randperm(len(labels), generator=draws)
                whole = order[: max(len(order) // config.batch, 1) * config.batch]
                seen += [take_step(fabric, learner, inputs[rows], labels[rows]) for rows in whole.split(config.batch)]
            losses = torch.stack(seen)
            refuse_divergence(losses, epoch, f"give a lower rate than {config.rate}, or clip=1")
            learner.module.eval()
            mean = float(episodes(surest, judging, JUDGED, SEED_OF_VALIDATION)[0].mean())
            if mean >= best_mean:
                best, best_mean = {key: part.clone() for key, part in learner.module.state_dict().items()}, mean
            spent_s = round(time.process_time() - started_s, 2)
            loss = losses.mean().item()
            curve.append({"train_loss": loss, "loss": loss, "mean_return": mean, "cpu_s": spent_s})
            done.by(1, f"round {epoch + 1} of {config.epochs}  mean return {mean:.0f}")
    learner.module.load_state_dict(best)
    return curve


def lessons(played: list[Array], last: Array, config: Any) -> tuple[Array, Array]:
    """What was observed, (n, ...), and for each the move, its log probability, its advantage and its return, (n, 4).

    Of arrays (moves, games): a game's first move after its end is the environment's own and teaches nothing.
    """
    observed, move, log_p, value, reward, lost, over, fresh = played
    gains = advantages(reward, value, last, lost, over, config.discount, config.trace)
    teaches = ~fresh.astype(bool)
    returns = (gains + value)[teaches]
    gains = gains[teaches]
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    labels = np.stack([move[teaches], log_p[teaches], gains, returns], axis=1)
    return observed[teaches].astype(np.float32), labels.astype(np.float32)


def advantages(
    reward: Array, value: Array, last: Array, lost: Array, over: Array, discount: float, trace: float
) -> Array:
    """How much better a move was than its state's value, (moves, games): rewards to come, values where they stop.

    A game that is lost is worth nothing afterwards; one that is cut off (`over`, not `lost`) what its next state is.
    """
    gains, after, ahead = np.zeros_like(value), last, np.zeros_like(last)
    for k in reversed(range(len(reward))):
        error = reward[k] + discount * after * ~lost[k] - value[k]
        ahead = error + discount * trace * ahead * ~over[k]
        gains[k], after = ahead, value[k]
    return gains


def episodes(
    policy: Callable[[Array], Array], games: Any, many: int, seed: int = SEED_OF_EPISODES
) -> tuple[Array, Array]:
    """Returns of `many` episodes by a policy, observations (n, ...) -> moves (n,), and what was observed in them.

    Each game gives as many, its first ones, so that short ones do not count more often.
    """
    observed, _ = games.reset(seed=seed)
    gained, seen, fresh = np.zeros(games.num_envs), [], np.zeros(games.num_envs, bool)
    ended: list[list[float]] = [[] for _ in range(games.num_envs)]
    each = -(-many // games.num_envs)
    while min(map(len, ended)) < each:
        rows = np.ascontiguousarray(observed, np.float32)
        seen.append(rows.copy())
        observed, reward, lost, late, _ = games.step(policy(rows))
        gained += np.where(fresh, 0.0, reward)
        fresh = lost | late
        for k in np.flatnonzero(fresh):
            ended[k].append(float(gained[k]))
        gained[fresh] = 0.0
    return np.array([value for game in ended for value in game[:each]])[:many], np.concatenate(seen)
