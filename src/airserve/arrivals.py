"""When devices ask: the one law that the twin predicts with and the driver sends by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator

from airserve.errors import UserError
from airserve.model import Array

CLOCK_ERROR_PPM = 20.0  # standard deviation of a device's crystal
JITTER = 0.05  # of a period, uniform to either side: without it phases freeze against TDD and scheduling requests


class ArrivalError(UserError, ValueError):
    """An arrival law that cannot be followed; one sentence for the user."""


def times(arrival: str, devices: int, rate_hz: float, until_s: float, rng: Generator) -> tuple[Array, Array]:
    """Send times in [0, until_s) in order, shape (n,), and the device of each, shape (n,).

    `periodic`: every device has a random phase, a clock error and a jitter. `poisson`: memoryless.
    `trace: FILE`: one time in seconds a line, optionally a comma and the device. Raises `ArrivalError`.

    >>> at, device = times("periodic", devices=4, rate_hz=5, until_s=10, rng=np.random.default_rng(1))
    >>> len(at) in range(196, 205), bool((np.diff(at) >= 0).all()), int(device.max())
    (True, True, 3)
    """
    if arrival.startswith("trace:"):
        at, device = _trace(Path(arrival.removeprefix("trace:").strip()), devices)
        device, at = device[at < until_s], at[at < until_s]
    elif arrival == "poisson":
        counts = rng.poisson(rate_hz * until_s, devices)
        device = np.repeat(np.arange(devices), counts)
        at = rng.uniform(0, until_s, counts.sum())
    elif arrival == "periodic":
        period_s = (1 + CLOCK_ERROR_PPM * 1e-6 * rng.standard_normal(devices)) / rate_hz
        number = np.arange(int(np.ceil(until_s * rate_hz * 1.01)) + 1)
        phase_s = rng.uniform(0, 1, devices) * period_s
        grid = phase_s[:, None] + number[None, :] * period_s[:, None]
        at = (grid + rng.uniform(-JITTER, JITTER, grid.shape) * period_s[:, None]).ravel()
        device = np.repeat(np.arange(devices), len(number))
        inside = (at >= 0) & (at < until_s)
        at, device = at[inside], device[inside]
    else:
        raise ArrivalError(f"arrival {arrival!r} is unknown; choose periodic, poisson or `trace: FILE`.")
    order = np.argsort(at, kind="stable")
    return at[order], device[order]


def _trace(path: Path, devices: int) -> tuple[Array, Array]:
    try:
        rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        at = np.array([float(row[0]) for row in rows])
        device = np.array([int(row[1]) if len(row) > 1 else i % devices for i, row in enumerate(rows)], dtype=int)
    except OSError as error:
        raise ArrivalError(f"the trace {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ArrivalError(f"the trace {path} is not `seconds[,device]` a line: {error}.") from None
    if (at < 0).any() or (device < 0).any() or (device >= devices).any():
        raise ArrivalError(f"the trace {path} has a negative time, or a device outside 0 to {devices - 1}.")
    return at, device
