"""Whether what was predicted was measured: python bench/promises.py [--seeds 1,2,3] [--seconds 30] [--json]

The factory's models have to be in the registry (`make demo` puts them there). The figure to reach: the measured
percentile lies within 25 % of the predicted one, or its interval overlaps the prediction's, for both services in
three runs with different seeds of channel and arrivals.
"""

import argparse
import json
import sys

from airserve.demo import FACTORY
from airserve.place.deployment import down, up, wanted
from airserve.place.description import read
from airserve.place.planning import plan
from airserve.registry import Registry
from airserve.serve.driving import drive
from airserve.web.contents import contents

WITHIN = 0.25


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seeds", default="1,2,3")
    asked.add_argument("--seconds", type=float, default=30.0)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    factory, registry = read(FACTORY), Registry()
    made = plan(factory, registry=registry, progress=False)
    runs = []
    for seed in map(int, given.seeds.split(",")):
        deployment = wanted(factory, made, registry=registry, name="bench-promises", port=7900, seed=seed)
        try:
            running = up(deployment, registry.home)
            found = contents(
                "promises", factory, made, drive(deployment, seconds=given.seconds, seed=seed, run_dir=running.run_dir)
            )
        finally:
            down("bench-promises", registry.home)
        for one in found["services"]:
            (low, high), (least, most) = one["predicted_interval_ms"], one["measured_interval_ms"]
            off = one["measured_ms"] / one["predicted_ms"] - 1
            told = {
                "seed": seed,
                "valid": found["valid"],
                "off": round(off, 3),
                "kept": abs(off) <= WITHIN or (least <= high and low <= most),
            }
            keys = (
                "name",
                "promise_ms",
                "percentile",
                "predicted_ms",
                "predicted_interval_ms",
                "measured_ms",
                "measured_interval_ms",
                "verdict",
            )
            runs.append({**told, **{key: one[key] for key in keys}})
            if not given.json:
                print(
                    f"seed {seed} {one['name']:10} p{one['percentile']:g} predicted {one['predicted_ms']:6.1f} "
                    f"({low:.1f} to {high:.1f}), measured {one['measured_ms']:6.1f} ({least:.1f} to {most:.1f}) ms, "
                    f"{off:+.1%}; promise {one['promise_ms']:g} ms {one['verdict']}; {found['invalid_why'] or 'valid'}",
                    flush=True,
                )
    kept = all(run["kept"] and run["valid"] for run in runs)
    if given.json:
        print(json.dumps({"runs": runs, "within": WITHIN, "kept": kept}, indent=1))
    else:
        print(f"within {WITHIN:.0%} or overlapping, in valid runs: {'kept' if kept else 'not kept'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
