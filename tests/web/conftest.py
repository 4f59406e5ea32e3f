"""TEST DATA: a report of the shape that `airserve report` gives, with figures drawn at random, not measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator, default_rng

Plain = dict[str, Any]

SPANS = [
    ("wait", "up", "hall", 9.0, 11.0),
    ("air", "up", "hall", 2.1, 4.6),
    ("transit", "up", "mast", 1.0, 1.1),
    ("queue", "", "mast", 0.2, 2.4),
    ("compute", "", "mast", 1.9, 2.6),
    ("transit", "down", "mast", 1.0, 1.1),
    ("wait", "down", "hall", 0.9, 2.2),
    ("air", "down", "hall", 0.5, 0.6),
]
HEAD = [("compute", "", "camera", 21.0, 25.0)]


def waterfall(scale: float, extra_ms: float, head: bool) -> list[Plain]:
    spans = (HEAD if head else []) + SPANS
    return [
        {
            "kind": kind,
            "direction": direction,
            "site": site,
            "median_ms": median * scale,
            "slow_ms": (median + slow) * scale + (extra_ms if kind == "queue" else 0),
            "predicted_slow_ms": (median + slow) * scale * 1.01,
        }
        for kind, direction, site, median, slow in spans
    ]


def service(name: str, rng: Generator, promise_ms: float, verdict: str, scale: float, **more: Any) -> Plain:
    cut = more.get("cut", "input")
    extra = 14.0 if verdict == "not kept" else 0.0
    spans = waterfall(scale, extra, head=cut not in ("input", "none"))
    value = sum(span["slow_ms"] for span in spans)
    predicted = sum(span["predicted_slow_ms"] for span in spans)
    grid = np.linspace(0, 2 * promise_ms, 160)
    middle = sum(span["median_ms"] for span in spans)
    reach = lambda at: np.clip(1 - np.exp(-((grid / middle) ** 4) * at), 0, 1)  # noqa: E731
    tail = math.log(100) / (value / middle) ** 4
    devices = more.pop("devices", 20)
    count = np.unique(np.linspace(devices / 2, devices * 8, 12).astype(int))
    growth = predicted * (0.97 + 0.03 * np.exp(count / devices * 0.4))
    fits = more.pop("max_devices", int(devices * np.log(max(1.1, (promise_ms / predicted - 0.97) / 0.03)) / 0.4))
    times = np.arange(30.0)
    few = verdict == "too few requests"
    return {
        "name": name,
        "model": "resnet8-fashion",
        "variant": "fp32",
        "cut": cut,
        "encoding": "raw",
        "sites": ["mast"],
        "slice": "control",
        "devices": devices,
        "rate_hz": 5,
        "promise_ms": promise_ms,
        "percentile": 99,
        "max_accuracy_drop": 0.01,
        "predicted_ms": predicted,
        "predicted_interval_ms": [predicted - 0.9, predicted + 1.1],
        "measured_ms": value,
        "measured_interval_ms": [value - 1.3, value + (12 if verdict == "too close to call" else 1.6)],
        "measured_p50_ms": middle,
        "sent": 240 if few else 3000,
        "answered": 240 if few else 3000,
        "failed": 0,
        "verdict": verdict,
        "kept": verdict == "kept",
        "score": {"metric": "accuracy", "value": 0.921, "n": 9000, "before": 0.9204},
        "why": f"sends the input to the mast: the sensor alone needs 88 ms of the {promise_ms:g} ms promised.",
        "runners_up": [
            {
                "label": "int8 on sensor alone",
                "variant": "int8",
                "cut": "none",
                "encoding": "",
                "sites": ["sensor"],
                "predicted_ms": 88.0,
                "predicted_interval_ms": [87.0, 89.0],
                "cost": 0.01,
                "score": 0.9198,
                "why": f"misses {promise_ms:g} ms by {88 - promise_ms:g} ms; 86 ms of it is compute on the sensor",
                "gain": "−56 ms against the device alone",
            },
            {
                "label": "fp32 cut at relu_6 (int8), sensor + mast",
                "variant": "fp32",
                "cut": "relu_6",
                "encoding": "int8",
                "sites": ["sensor", "mast"],
                "predicted_ms": 121.0,
                "predicted_interval_ms": None,
                "cost": 0.9,
                "score": 0.9176,
                "why": "carries 2.1 times the input's bytes and still computes 79 ms on the sensor",
                "gain": "−89 ms against the device alone",
            },
            {
                "label": "send the input, fp32 on region",
                "predicted_ms": None,
                "predicted_interval_ms": [71.0, None],
                "cost": 0.7,
                "why": "region is 19 ms farther away in each direction",
                "gain": None,
            },
        ],
        "max_devices": fits,
        "binds": "scheduling requests of slice control",
        "capacity": {"devices": count, "ms": growth, "low": growth * 0.96, "high": growth * 1.05},
        "waterfall": spans,
        "slow_ranks": [98.5, 99.5],
        "over_time": {
            "t_s": times,
            "percentile_ms": value * (1 + 0.06 * rng.standard_normal(30)),
            "p50_ms": middle * (1 + 0.02 * rng.standard_normal(30)),
        },
        "cdf": {"ms": grid, "measured": reach(tail), "predicted": reach(tail * (value / predicted) ** 4)},
        "worst": [
            {"kind": s["kind"], "direction": s["direction"], "site": s["site"], "ms": s["slow_ms"] * 1.3} for s in spans
        ],
        **more,
    }


def factory() -> Plain:
    rng = default_rng(7)
    share = lambda level: np.clip(level * (1 + 0.25 * rng.standard_normal(30)), 0, 1)  # noqa: E731
    inspect = service("inspect", rng, 50, "kept", 0.92)
    camera = {"model": "efficientnet-lite0", "slice": "video", "rate_hz": 2, "max_accuracy_drop": 0.02}
    recognise = service(
        "recognise", rng, 80, "kept", 1.2, encoding="jpeg", percentile=95, devices=10,
        binds="compute of mast", score={"metric": "agreement", "value": 0.994, "n": 80, "before": 1.0}, **camera,
    )  # fmt: skip
    pinned = service(
        "recognise", rng, 80, "not kept", 0.78, variant="int8", cut="relu_31", encoding="int8",
        sites=["camera", "mast"], devices=10, percentile=95, **camera,
    )  # fmt: skip
    return {
        "name": "factory (test data)",
        "made": "2026-11-21T23:40:00Z",
        "life": "emulator (byte-level)",
        "valid": True,
        "invalid_why": "",
        "lateness_ms_p99": 0.3,
        "duration_s": 30.0,
        "seed": 7,
        "emulation": [
            "the air: bytes of TCP connections held and released by the MAC in real time (byte-level emulation)",
            "sensor: computes at speed 0.002 by padding",
            "camera: computes at speed 0.1 by padding",
        ],
        "shared": "the MAC and the statistics of the radio traces",
        "not_shared": "engine, sockets, processes, arrivals, channel seeds",
        "services": [inspect, recognise],
        "slices": [
            {
                "name": "control", "dedicated": 10, "min": 20, "max": 60,
                "up": {"share_used": 0.031, "mbps": 0.93, "predicted_share": 0.03, "per_s": share(0.03)},
                "down": {"share_used": 0.004, "mbps": 0.2, "predicted_share": 0.004, "per_s": share(0.004)},
            },
            {
                "name": "video", "dedicated": 0, "min": 30, "max": 100,
                "up": {"share_used": 0.44, "mbps": 23.2, "predicted_share": 0.41, "per_s": share(0.44)},
                "down": {"share_used": 0.01, "mbps": 0.1, "predicted_share": 0.01, "per_s": share(0.01)},
            },
        ],
        "runs": [{"name": "pinned cut", "valid": True, "services": [pinned]}],
    }  # fmt: skip


def four_verdicts() -> Plain:
    rng = default_rng(3)
    made = factory()
    made["services"] = [
        service("inspect", rng, 50, "not kept", 0.92),
        service("guide", rng, 50, "too close to call", 0.98),
        service("meters", rng, 400, "kept", 4.0),
        service("safety-stop", rng, 20, "too few requests", 0.3),
    ]
    return made


@pytest.fixture
def report() -> Plain:
    """Two services, both kept, and a further run."""
    return factory()


@pytest.fixture
def verdicts() -> Plain:
    """Four services, one of each verdict."""
    return four_verdicts()
