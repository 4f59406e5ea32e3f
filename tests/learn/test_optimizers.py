"""Optimizers: two steps of each against numbers from the papers' formulas, and descent against a closed form."""

import numpy as np
import pytest
import torch

from airserve.learn.losses import squared_error
from airserve.learn.optimizers import NAMES, optimizer

RATE, DECAY = 0.1, 0.5
GRADIENTS = (2.0, -1.0)


def by_hand(name: str) -> float:
    """A weight of 1 after two gradients, written out from the formulas."""
    weight, first, second, velocity = 1.0, 0.0, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        if name == "adamw":
            weight *= 1 - RATE * DECAY
        else:
            gradient += DECAY * weight
        if name in ("adam", "adamw"):
            b = 0.99 if name == "adamw" else 0.999
            first, second = 0.9 * first + 0.1 * gradient, b * second + (1 - b) * gradient**2
            weight -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - b**step)) + 1e-8)
        elif name == "sgd":
            velocity = 0.9 * velocity + gradient if step > 1 else gradient
            weight -= RATE * (gradient + 0.9 * velocity)
        else:
            weight -= RATE * gradient
    return weight


@pytest.mark.parametrize("name", NAMES)
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


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LookupError, match="no optimizer named 'adagrad'; there are adamw"):
        optimizer("adagrad", [], RATE)
