"""Optimizers: two steps of each against numbers from the papers' formulas, and descent against a closed form."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from airserve.learn.losses import squared_error
from airserve.learn.optimizers import Muon, by_kind, optimizer
from airserve.learn.recipe import CHOICES

RATE, DECAY = 0.1, 0.5
GRADIENTS = (2.0, -1.0)


def by_hand(name: str) -> float:
    """A weight of 1 after two gradients, written out from the formulas."""
    weight, first, second, velocity = 1.0, 0.0, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        if name in ("adamw", "muon"):  # which moves what is no matrix as the first does
            weight *= 1 - RATE * DECAY
        else:
            gradient += DECAY * weight
        if name in ("adam", "adamw", "muon"):
            b = 0.999 if name == "adam" else 0.99
            first, second = 0.9 * first + 0.1 * gradient, b * second + (1 - b) * gradient**2
            weight -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - b**step)) + 1e-8)
        elif name == "sgd":
            velocity = 0.9 * velocity + gradient if step > 1 else gradient
            weight -= RATE * (gradient + 0.9 * velocity)
        else:
            weight -= RATE * gradient
    return weight


@pytest.mark.parametrize("name", CHOICES["optimizer"])
def test_two_steps_by_hand(name: str) -> None:
    weight = torch.ones(1, requires_grad=True)
    rule = optimizer(name, [{"params": [weight], "weight_decay": DECAY}], RATE)
    for gradient in GRADIENTS:
        weight.grad = torch.tensor([gradient])
        rule.step()
    assert weight.item() == pytest.approx(by_hand(name), rel=1e-6)


def test_descent_finds_least_squares() -> None:
    """Gradient descent on a linear net ends at (X'X)^-1 X'y; its first step is rate times 2 X'y / n."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    wanted = np.linalg.solve(x.T @ x, x.T @ y)
    weight = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    rule = optimizer("descent", [{"params": [weight]}], RATE)
    inputs, targets = torch.tensor(x), torch.tensor(y)
    for step in range(300):
        rule.zero_grad()
        squared_error(inputs @ weight, targets).backward()
        rule.step()
        if step == 0:
            np.testing.assert_allclose(weight.detach(), RATE * 2 * x.T @ y / 50, rtol=1e-12)
    np.testing.assert_allclose(weight.detach(), wanted, rtol=1e-9)


def test_muon_steps_along_all_singular_vectors_alike() -> None:
    """NumPy's SVD says U and V of the gradient; the step is about U V', of AdamW's size, after the weight's decay."""
    rng = np.random.default_rng(0)
    start, gradient = rng.normal(size=(2, 6, 4))
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    rule = optimizer("muon", [{"params": [weight], "weight_decay": DECAY, "matrices": True}], RATE)
    weight.grad = torch.tensor(gradient, dtype=torch.float32)
    rule.step()
    u, values, v = np.linalg.svd(gradient, full_matrices=False)
    assert values[0] > 2 * values[-1]
    step = (start * (1 - RATE * DECAY) - weight.detach().numpy()) / (RATE * 0.2 * np.sqrt(6))
    along = u.T @ step @ v.T
    np.testing.assert_allclose(along, np.eye(4), atol=0.35)  # five steps of Newton and Schulz leave 0.7 to 1.2
    assert np.abs(along - np.diag(np.diag(along))).max() < 0.03


def test_muon_goes_on_from_its_state_and_leaves_tables_to_adamw() -> None:
    def one() -> tuple[torch.nn.Module, Muon]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
        return net, Muon(by_kind("muon", net, DECAY), RATE, 0.95)

    def step(net: torch.nn.Module, rule: Muon) -> None:
        rule.zero_grad()
        net(torch.arange(5)).square().sum().backward()
        rule.step()

    net, rule = one()
    assert [[tuple(w.shape) for w in group["params"]] for group in rule.param_groups] == [[(3, 4)], [(5, 4)], [(3,)]]
    step(net, rule)
    again, other = one()
    again.load_state_dict(net.state_dict())
    other.load_state_dict(deepcopy(rule.state_dict()))  # torch shares tensors that it loads
    for group in (*rule.param_groups, *other.param_groups):
        group["lr"] = 0.01  # what a schedule sets reaches both parts
    before = net[0].weight.detach().clone()
    step(net, rule)
    step(again, other)
    assert (before - net[0].weight).abs().max() < 0.05
    for one_weight, other_weight in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one_weight, other_weight)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LookupError, match="no optimizer named 'adagrad'; there are adamw"):
        optimizer("adagrad", [], RATE)
