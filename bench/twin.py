"""How much faster than real time the twin runs, on one core: the demo's load, and 100 devices from 20 Mbit/s up.

python bench/twin.py
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.contract import percentile
from airserve.network import twin
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


def demo() -> list[Flow]:
    """The demo's load: 20 sensors that send 1.1 kB, 8 cameras that send a JPEG of 14.5 kB."""
    answers = np.arange(200, 4001, 200)
    inspect = Flow("inspect", "control", 20, 5.0, site="mast", bytes_up=[1100], bytes_down=answers, site_seconds=[3e-4])
    recognise = Flow(
        "recognise", "video", 8, 1.0, site="mast", bytes_up=[14_500], bytes_down=answers, site_seconds=[6e-3]
    )
    return [inspect, recognise]


def hundred(mbps_up: float, mbps_down: float) -> list[Flow]:
    """100 devices that together send so much in records of 15 kB, and are sent so much."""
    rate_hz = mbps_up * 1e6 / 8 / 15_000 / 100
    down = 15_000 * mbps_down / mbps_up
    return [Flow("load", "video", 100, rate_hz, "poisson", site="mast", bytes_up=[15_000], bytes_down=[down])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, of each load")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    began_s = time.process_time()
    twin.run(HALL, demo(), until_s=1, seed=0)
    ready_s = time.process_time() - began_s
    loads = {
        "demo: 20 sensors, 8 cameras": demo(),
        "100 devices, 20 + 1 Mbit/s": hundred(20, 1),
        "100 devices, 25 + 100 Mbit/s": hundred(25, 100),
        "100 devices, 80 + 80 Mbit/s": hundred(80, 80),
        "400 devices, saturated": [Flow("load", "video", 400, 5.0, site="mast", bytes_up=[15_000], bytes_down=[1000])],
    }
    table = Table("load", "x real time", "us a request", "PRBs up", "PRBs down", "p50 ms", "p99 ms")
    for name, flows in track(loads.items(), "simulating", console=Console(stderr=True), transient=True):
        runs = [twin.run(HALL, flows, until_s=args.seconds, seed=1 + i) for i in range(args.runs)]
        best = max(runs, key=lambda run: run.realtime_factor)
        latency = np.concatenate([one.latency_ms for one in best.readings.values()])
        share = [sum(row[way]["share_used"] for row in best.slices) for way in ("up", "down")]
        table.add_row(
            name,
            f"{best.realtime_factor:.0f}",
            f"{args.seconds / best.realtime_factor / len(latency) * 1e6:.1f}",
            *(f"{x:.1%}" for x in share),
            *(f"{percentile(latency, q):.1f}" for q in (50, 99)),
        )
    Console(width=100).print(table)
    print(f"best of {args.runs} runs of {args.seconds:g} s, by CPU time; {ready_s:.1f} CPU-s to load or compile")


if __name__ == "__main__":
    main()
