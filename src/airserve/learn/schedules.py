"""The learning rate over the steps of a training."""

from typing import Any, final

WARMUP = 0.2  # part of the steps in which the learning rate rises
LEAST = 0.01  # part of the peak


@final
class OneCycle:
    """A rate that rises once and falls to nothing, in straight lines. Smith and Topin 2017, arXiv:1708.07120.

    It sets the rate of an optimizer's groups, `lr`, for the step to come: a scheduler of torch does the same in a tenth
    of a small net's step.

    >>> from types import SimpleNamespace
    >>> cycle, rates = OneCycle(SimpleNamespace(param_groups=[{"lr": 2.0}]), steps=8), []
    >>> for _ in range(8):
    ...     rates.append(cycle.rate)
    ...     cycle.step()
    >>> rates
    [0.02, 1.25, 1.875, 1.5625, 1.25, 0.9375, 0.625, 0.3125]
    """

    def __init__(self, optimizer: Any, steps: int) -> None:
        self.optimizer, self.steps = optimizer, steps  # its groups are new ones after a state was loaded
        self.peak = float(optimizer.param_groups[0]["lr"])
        self.done = -1
        self.step()

    @property
    def rate(self) -> float:
        part = self.done / self.steps
        return self.peak * max(part / WARMUP if part < WARMUP else (1 - part) / (1 - WARMUP), LEAST)

    def step(self) -> None:
        self.done += 1
        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"] - 1
        self.step()
