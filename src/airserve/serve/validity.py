"""When a run does not count: this machine was late, too slow, or lost account of the requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airserve.contract import Asker, Deployment, Readings
from airserve.model import Array
from airserve.serve.asking import Asked

LATE = 0.1  # of a promise: where what this machine adds is more, at the percentile, the run is invalid
UNEXPLAINED = 0.001  # of the answered requests: where more have no account of their time, the run is invalid
UP = 1  # as the relay's log has directions


def why_invalid(
    deployment: Deployment,
    asked: Sequence[Asked],
    lateness_ms: float,
    driver_ms: float,
    overrun_ms: Mapping[str, float],
    unexplained: int,
) -> str:
    """Why a run does not count, in sentences; "" where it does."""
    tightest_ms = min(asker.promise.latency_ms for asker in deployment.askers)
    answered = sum(one.answered for one in asked)
    why = []
    for what, late_ms in (("the relay released", lateness_ms), ("the driver sent", driver_ms)):
        if late_ms > LATE * tightest_ms:
            why.append(
                f"{what} {late_ms:.1f} ms late at the 99th percentile, more than {100 * LATE:.0f} % of the tightest "
                f"promise ({tightest_ms:g} ms): this machine is too busy, or lets nobody use SCHED_FIFO."
            )
    for asker in deployment.askers:
        promise_ms, over_ms = asker.promise.latency_ms, overrun_ms[asker.service]
        if over_ms > LATE * promise_ms:
            why.append(
                f"{asker.service} computed {over_ms:.1f} ms longer than on the emulated site at its percentile, "
                f"more than {100 * LATE:.0f} % of its promise ({promise_ms:g} ms): this machine is too busy."
            )
    if unexplained > UNEXPLAINED * answered:
        why.append(f"{unexplained} of {answered} answers have no account of their time in the relay's log.")
    return " ".join(why)


def computed_over_ms(deployment: Deployment, asker: Asker, readings: Readings) -> float:
    """How much longer a service's requests computed than the emulated sites would, at its promise's percentile."""
    over_ms = np.zeros(len(readings.sent_s))
    for k, span in enumerate(readings.spans):
        processes = [one for one in deployment.processes if one.site == span.site]
        served = (e for one in processes for e in one.endpoints if e.name in (asker.model, f"{asker.model}-tail"))
        steps = next(served).functions if span.kind == "compute" else ()
        if steps and all(step.padded_s is not None for step in steps):
            over_ms += np.maximum(readings.ms[:, k] - 1e3 * sum(step.padded_s or 0.0 for step in steps), 0.0)
    known = over_ms[np.isfinite(over_ms)]
    return float(np.percentile(known, asker.promise.percentile)) if len(known) else 0.0


def released_late_ms(deployment: Deployment, log: Array) -> float:
    """99th percentile of how late the relay released, in ms."""
    assert deployment.air is not None
    delay_s = np.array([site.delay_ms / 1e3 for site in deployment.air.sites])[log["site"]]
    late_s = log["released_s"] - log["delivered_s"] - np.where(log["direction"] == UP, delay_s, 0)
    late_s = late_s[np.isfinite(late_s)]
    return float(np.percentile(1e3 * late_s, 99)) if len(late_s) else 0.0
