"""What a packet and a device cost the MAC in CPU time, from 10 to 10,000 devices in one cell; a table and a picture.

python bench/cost.py --to docs/cost.svg

The cell carries the same 50 Mbit/s in 1,400-byte packets, half of it up, however many devices share it. CPU time of one
core, compilation aside; the packets are offered as arrays.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.network.mac import DOWN, UP, Mac
from airserve.network.topology import Network

DEVICES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
NBYTES, MBPS = 1_400, 50
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 520, 300, 70, 30, 40
COLOURS = {"us_packet": "#4269d0", "us_device_s": "#ff725c"}
WORDS = {"us_packet": "a packet, µs", "us_device_s": "a device, µs a second"}


def measured(network: Network, ues: int, seconds: float, seed: int) -> dict[str, float]:
    """CPU time of one run, by packet and by device and simulated second."""
    rng = np.random.default_rng(seed)
    mac = Mac(network, [0] * ues, seed=seed, max_records=1 << 16)
    n = round(MBPS * 1e6 / 8 / NBYTES * seconds)
    mac.offer_all(rng.integers(0, ues, n), rng.choice([DOWN, UP], n), NBYTES, np.sort(rng.uniform(0, seconds, n)))
    began_s = time.thread_time()
    mac.run(seconds)
    cpu_s = time.thread_time() - began_s
    return {"devices": ues, "us_packet": cpu_s / n * 1e6, "us_device_s": cpu_s / seconds / ues * 1e6,
            "times_real": seconds / cpu_s}  # fmt: skip


def picture(rows: list[dict[str, float]]) -> str:
    """Both costs over the number of devices, both axes logarithmic; SVG."""
    values = [row[key] for row in rows for key in COLOURS]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(devices: float) -> float:
        span = math.log10(rows[-1]["devices"] / rows[0]["devices"])
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(devices / rows[0]["devices"]) / span

    def y(value: float) -> float:
        return 20 + (HEIGHT - BOTTOM - 20) * (high - math.log10(value)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>CPU time by number of devices</title><rect width="100%" height="100%" fill="white"/>'
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:g} µs</text>')
    parts += [
        f'<text x="{x(row["devices"]):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{row["devices"]:,}</text>'
        for row in rows
        if math.log10(row["devices"]).is_integer()
    ]
    for key, colour in COLOURS.items():
        points = " ".join(f"{x(row['devices']):.1f},{y(row[key]):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        end = rows[0]
        parts.append(
            f'<text x="{x(end["devices"]) + 6:.1f}" y="{y(end[key]) - 8:.1f}" fill="{colour}">{WORDS[key]}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">devices in the cell</text></svg>\n')
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated, of each run")
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--to", type=Path, help="write the picture here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    network = Network.model_validate(
        {
            "cells": [{"name": "hall", "sr_period_ms": 200}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge"}],
        }
    )
    measured(network, 10, 1.0, 0)
    rows = []
    for ues in track(DEVICES, "simulating", console=Console(stderr=True), transient=True):
        runs = [measured(network, ues, args.seconds, seed) for seed in range(args.runs)]
        rows.append(min(runs, key=lambda run: run["us_packet"]))
    if args.to:
        args.to.write_text(picture(rows))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("devices", "µs a packet", "µs a device and second", "x real time")
    for row in rows:
        table.add_row(f"{row['devices']:,}", f"{row['us_packet']:.2f}", f"{row['us_device_s']:.1f}",
                      f"{row['times_real']:.0f}")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
