"""How much faster than real time the twin runs, on one core: the demo's load, and the loads of a full cell.

python bench/twin.py

The demo's load goes through the twin: up, a site's queue, and down. The others are Poisson records in each direction
offered to the MAC alone. CPU time of one core; all physics on; compilation aside and stated.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.topology import Network
from airserve.network.traffic import Flow

HALL = Network.model_validate(
    {
        "cells": [{"name": "hall"}],
        "slices": [
            {"name": "control", "dedicated": 10, "min": 20, "max": 60},
            {"name": "video", "min": 30, "max": 100},
        ],
        "sites": [{"name": "mast", "kind": "edge", "cores": 8, "delay_ms": 1}],
    }
)
VIDEO = 1
NEAR_FULL = 0.85  # of the PRBs, in both directions


def demo() -> list[Flow]:
    """The demo's load: 20 sensors that send 1.1 kB, 8 cameras that send a JPEG of 14.5 kB."""
    answers = np.arange(200, 4001, 200)
    inspect = Flow("inspect", "control", 20, 5.0, site="mast", bytes_up=[1100], bytes_down=answers, site_seconds=[3e-4])
    recognise = Flow(
        "recognise", "video", 8, 1.0, site="mast", bytes_up=[14_500], bytes_down=answers, site_seconds=[6e-3]
    )
    return [inspect, recognise]


def measured_twin(seconds: float, seed: int) -> dict[str, Any]:
    """The demo's load in the twin."""
    run = twin.run(HALL, demo(), until_s=seconds, seed=seed)
    latency = np.concatenate([one.latency_ms for one in run.readings.values()])
    return {
        "times_real": run.realtime_factor,
        "us_each": seconds / run.realtime_factor / len(latency) * 1e6,
        **{f"prbs_{way}": sum(row[way]["share_used"] for row in run.slices) for way in ("up", "down")},
        **{f"p{q}_ms": percentile(latency, q) for q in (50, 99)},
    }


def measured_mac(
    ues: int, up_mbps: float, down_mbps: float, nbytes: int, seconds: float, seed: int, *, saturated: bool = False
) -> dict[str, Any]:
    """Poisson records of so many bytes for some devices, in the MAC; `saturated`: all are there from the start."""
    rng = np.random.default_rng(seed)
    mac = Mac(HALL, [VIDEO] * ues, seed=seed, max_records=1 << 16)
    offered = 0
    for direction, mbps in ((DOWN, down_mbps), (UP, up_mbps)):
        n = rng.poisson(mbps * 1e6 / 8 / nbytes * seconds)
        at_s = np.zeros(n) if saturated else np.sort(rng.uniform(0, seconds, n))
        mac.offer_all(rng.integers(0, ues, n), direction, nbytes, at_s)
        offered += n
    began_s = time.thread_time()
    done = mac.run(seconds)
    cpu_s = time.thread_time() - began_s
    ms = (done["delivered_s"] - done["arrived_s"]) * 1e3
    used = mac.usage()
    down, up = used.share_used.sum(axis=0)
    return {
        "times_real": seconds / cpu_s,
        "us_each": cpu_s / max(offered, 1) * 1e6,
        "prbs_up": float(up),
        "prbs_down": float(down),
        **{f"p{q}_ms": percentile(ms, q) for q in (50, 99)},
        "mbps": used.mbps.sum(axis=0).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated, of each load")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began_s = time.process_time()
    measured_twin(1.0, seed=0)
    ready_s = time.process_time() - began_s
    full = measured_mac(100, 800, 2500, 15_000, 1.0, seed=0, saturated=True)["mbps"]
    loads = {
        "demo: 20 sensors, 8 cameras": None,
        "100 devices, 25 + 100 Mbit/s, 15 kB": (100, 25, 100, 15_000),
        "100 devices, 25 + 100 Mbit/s, 1.4 kB": (100, 25, 100, 1_400),
        "100 devices, 85 % of the PRBs, 15 kB": (100, NEAR_FULL * full[UP], NEAR_FULL * full[DOWN], 15_000),
        "1,000 devices, 25 + 100 Mbit/s, 15 kB": (1000, 25, 100, 15_000),
    }
    rows = {}
    for name, load in track(loads.items(), "simulating", console=Console(stderr=True), transient=True):
        runs = [
            measured_mac(*load, args.seconds, seed) if load else measured_twin(args.seconds, seed)
            for seed in range(1, args.runs + 1)
        ]
        rows[name] = max(runs, key=lambda run: run["times_real"])
    if args.json:
        print(json.dumps({"ready_cpu_s": ready_s, "loads": rows}, indent=1))
        return
    table = Table("load", "x real time", "us each", "PRBs up", "PRBs down", "p50 ms", "p99 ms")
    for name, row in rows.items():
        shares = (f"{row[key]:.1%}" for key in ("prbs_up", "prbs_down"))
        times = (f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms"))
        table.add_row(name, f"{row['times_real']:.0f}", f"{row['us_each']:.1f}", *shares, *times)
    Console(width=110).print(table)
    print(f"best of {args.runs} runs of {args.seconds:g} s, by CPU time; {ready_s:.1f} CPU-s to load or compile")


if __name__ == "__main__":
    main()
