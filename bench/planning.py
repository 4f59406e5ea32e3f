"""Seconds to profile and to plan a description, and what int8 costs at a cut per tensor and per channel.

    python bench/planning.py [FILE] [--json] [--cuts] [--fresh]

The models of FILE (the factory's when none is given) have to be in the registry. CPU-seconds, for other processes
may hold the machine; the first plan also measures the scores of cuts, which the registry then keeps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from airserve.model import Engine
from airserve.place.cutting import Scale, read, tapped
from airserve.place.description import Factory
from airserve.place.description import read as described
from airserve.place.measuring import halves, measured_score
from airserve.place.planning import plan
from airserve.place.profiling import profile, resolve
from airserve.registry import Registry
from airserve.samples import load_samples

FACTORY = Path(__file__).parents[1] / "examples" / "factory" / "factory.yaml"


def cpu_s(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work returns, and its CPU-seconds."""
    began = time.process_time()
    return work(), round(time.process_time() - began, 2)


def per_tensor_and_channel(factory: Factory, registry: Registry) -> list[dict[str, Any]]:
    """Scores of the fp32 graphs' cuts: one int8 scale for the tensor, one for every channel, and what is taken."""
    rows = []
    for name in dict.fromkeys(service.model for service in factory.services if service.model):
        model = resolve(name, registry)
        if model.samples_path is None:
            continue
        samples = load_samples(model.samples_path)
        known = profile(factory, registry=registry, progress=False).of(name).variants[0]
        for way in [way for way in known.ways if way.encoding == "int8" and way.at]:
            assert way.at is not None
            tap = Engine(tapped(read(model.path), [way.at]))
            seen = [tap.run([samples.inputs[i : i + 1]])[0] for i in range(samples.calibration)]
            one = Scale.between(np.float32(min(map(np.min, seen))), np.float32(max(map(np.max, seen))))
            axes = (0, *range(2, seen[0].ndim))
            every = np.concatenate(seen)
            each = Scale.between(every.min(axis=axes), every.max(axis=axes))
            scores = []
            for scale in (one, each, way.scale):
                head, tail = (Engine(half) for half in halves(replace(way, scale=scale), model))
                scores.append(measured_score(model, model, head, samples, tail)[1])
            rows.append(
                {"model": name, "cut": way.cut, "per_tensor": scores[0], "per_channel": scores[1], "taken": scores[2]}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=FACTORY)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cuts", action="store_true", help="also score int8 per tensor against per channel")
    parser.add_argument("--fresh", action="store_true", help="measure profiles that the registry remembers again")
    given = parser.parse_args()
    factory, registry = described(given.file), Registry()
    known, profile_s = cpu_s(lambda: profile(factory, registry=registry, fresh=given.fresh, progress=False))
    made, first_s = cpu_s(lambda: plan(factory, registry=registry, progress=False))
    _, again_s = cpu_s(lambda: plan(factory, registry=registry, progress=False))
    found: dict[str, Any] = {
        "ways": sum(len(variant.ways) for one in known.models for variant in one.variants),
        "profile_cpu_s": profile_s,
        "first_plan_cpu_s": first_s,
        "plan_cpu_s": again_s,
        "choices": [[choice.service, choice.chosen.label, choice.kept, choice.predicted_ms] for choice in made.choices],
    }
    if given.cuts:
        found["int8"] = per_tensor_and_channel(factory, registry)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['ways']} ways to run; profile {profile_s} CPU-s, first plan {first_s}, plan {again_s}")
    for name, label, kept, ms in found["choices"]:
        print(f"  {name}: {label}, {'kept' if kept else 'not kept'}, {ms:.1f} ms predicted")
    for row in found.get("int8", ()):
        print(
            f"  {row['model']} {row['cut']}: per tensor {row['per_tensor']:.3f}, per channel {row['per_channel']:.3f}"
        )


if __name__ == "__main__":
    main()
