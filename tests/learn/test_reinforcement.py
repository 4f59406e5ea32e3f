"""Reinforcement: advantages against their definition, the clipped objective by hand, and CartPole."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from airserve.catalog import nets, tasks
from airserve.learn.nets import Form
from airserve.learn.reinforcement import JUDGED, SEED_OF_VALIDATION, advantages, episodes, lessons
from airserve.learn.training import train
from airserve.model import Engine, Model
from airserve.registry import Registry
from airserve.samples import load_samples


def test_advantages_are_their_sum() -> None:
    """Schulman et al. 2016, equation 16: the discounted sum of errors to the end of each game, written as a loop."""
    rng = np.random.default_rng(0)
    moves, discount, trace = 7, 0.9, 0.8
    reward, value, last = rng.normal(size=(moves, 1)), rng.normal(size=(moves, 1)), rng.normal(size=1)
    lost, late = np.zeros((moves, 1), bool), np.zeros((moves, 1), bool)
    lost[2], late[4] = True, True
    found = advantages(reward, value, last, lost, lost | late, discount, trace)[:, 0]
    after = np.append(value[1:, 0], last)
    error = [reward[k, 0] + discount * after[k] * (not lost[k, 0]) - value[k, 0] for k in range(moves)]
    for k in range(moves):
        end = next(j for j in range(k, moves) if j == moves - 1 or lost[j, 0] or late[j, 0])
        wanted = sum((discount * trace) ** (j - k) * error[j] for j in range(k, end + 1))
        assert found[k] == pytest.approx(wanted)


def test_an_environments_own_move_teaches_nothing() -> None:
    shape = (4, 2)
    fresh = np.zeros(shape, bool)
    fresh[2, 1] = True
    observed = np.arange(8.0).reshape(4, 2, 1)
    zeros, no = np.zeros(shape), np.zeros(shape, bool)
    played = [observed, zeros, zeros, zeros, np.ones(shape), no, no, fresh]
    inputs, labels = lessons(played, np.zeros(2), SimpleNamespace(discount=0.99, trace=0.95))
    assert inputs[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert labels.shape == (7, 4)
    assert labels[:, 2].mean() == pytest.approx(0, abs=1e-6)
    assert labels[:, 2].std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("odds", "advantage", "counts"), [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (0.5, -1.0, -0.8)])
def test_gains_are_clipped(odds: float, advantage: float, counts: float) -> None:
    """Two moves alike: probability 1/2 now, 1/2 / odds when played; at most 1.2 and at least 0.8 of it count."""
    net = nets["policy"].build(nets["policy"].Config(hidden=2), Form((1,), 2))
    for weight in net.parameters():
        weight.data.zero_()
    before = np.log(0.5 / odds)
    loss = net.objective(torch.zeros(1, 1), torch.tensor([[1.0, before, advantage, 3.0]])).item()
    assert loss == pytest.approx(0.5 * 3.0**2 - counts - 0.01 * np.log(2), rel=1e-5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    pytest.importorskip("gymnasium")
    net = "policy,epochs=10,games=8,moves=64,batch=128"
    return train(net, "cartpole", registry=Registry(tmp_path_factory.mktemp("policy")), progress=False)


def test_cartpole_is_learnt_better_than_by_chance(policy: Model) -> None:
    model = policy
    assert model.lineage["baseline"]["score"] == pytest.approx(22, abs=3)  # as published for random moves
    assert model.scores["mean_return"] > 2 * model.lineage["baseline"]["score"]
    assert model.scores["worst_return"] <= model.scores["mean_return"] <= 500
    assert [each.name for each in model.signature.outputs] == ["logits", "value"]
    assert model.samples_path is not None
    held = load_samples(model.samples_path).held()
    assert held.labels is None
    assert Engine(model.path).run([held.inputs])[0].shape == (len(held.inputs), 2)


def test_a_served_policy_plays_as_the_model_does(policy: Model) -> None:
    """`airserve serve` and tritonclient: game for game the same returns, so all answers were the same."""
    triton = pytest.importorskip("tritonclient.http")
    command = [sys.executable, "-m", "airserve.cli", "serve", str(policy.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            (address,) = re.findall(r"http://(\S+)", process.stdout.readline())
            with triton.InferenceServerClient(address) as client:
                name = client.get_model_repository_index()[0]["name"]

                def served(rows: np.ndarray) -> np.ndarray:
                    given = triton.InferInput("observation", list(rows.shape), "FP32")
                    given.set_data_from_numpy(rows)
                    moves: np.ndarray = client.infer(name, [given]).as_numpy("logits").argmax(axis=1)
                    return moves

                returns, observed = episodes(served, tasks["cartpole"].environment(10), 20)
        finally:
            process.terminate()
    engine = Engine(policy.path)
    alone, seen = episodes(lambda rows: engine.run([rows])[0].argmax(axis=1), tasks["cartpole"].environment(10), 20)
    assert returns.tolist() == alone.tolist()
    assert returns.mean() == alone.mean() > 2 * policy.lineage["baseline"]["score"]
    np.testing.assert_array_equal(observed, seen)


def test_the_best_round_is_kept_where_later_ones_forget(tmp_path: Path) -> None:
    """Steps far too long: the Model plays as well as the best round did, not as the last."""
    pytest.importorskip("gymnasium")
    model = train("policy,epochs=12,rate=1e-1", "cartpole", seed=1, registry=Registry(tmp_path), progress=False)
    means = [each["mean_return"] for each in model.lineage["curve"]]
    assert means[-1] < max(means)
    engine, judging = Engine(model.path), tasks["cartpole"].environment(JUDGED)
    returns, _ = episodes(lambda rows: engine.run([rows])[0].argmax(axis=1), judging, JUDGED, SEED_OF_VALIDATION)
    assert returns.mean() == max(means)
