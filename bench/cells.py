"""How fast many cells run, and what load does to SINR: 57 cells of `umi`, live interference in both directions.

Times real are simulated seconds by CPU seconds, compilation aside. `--svg FILE` draws the distributions of SINR.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.buffers import DOWN
from airserve.network.outcome import Outcome
from airserve.network.topology import Network
from airserve.network.traffic import Flow

CELLS = 57
FILE_BYTES = 500_000  # FTP model 3, TR 36.889 A.1.1
LOADS = {"20 %": 1.7, "50 %": 3.3, "80 %": 5.4}  # files a second and device, for so much of the downlink's PRBs
CITY = Network.model_validate(
    {
        "cells": [{"name": "city", "scenario": "umi", "trps": CELLS}],
        "slices": [{"name": "all"}],
        "sites": [{"name": "cloud", "kind": "cloud", "cores": 1000}],
    }
)
RANGE_DB, WIDTH, HEIGHT, LEFT, BOTTOM = (-15, 45), 560, 300, 44, 40
COLOURS = ("#2a9d8f", "#e9a03b", "#d1495b")


def measured(flow: Flow, seconds: float, seed: int, drain_s: float) -> tuple[dict[str, Any], Outcome]:
    outcome = twin.run(CITY, [flow], until_s=seconds, seed=seed, drain_s=drain_s)
    one, slices = outcome.readings[flow.name], outcome.slices[0]
    return {
        "times_real": outcome.realtime_factor,
        "prbs_up": slices["up"]["share_used"],
        "prbs_down": slices["down"]["share_used"],
        "mbps_a_cell": slices["down"]["mbps"] / CELLS,
        "failed_blocks": outcome.failed_blocks,
        "answered": one.answered / max(len(one.sent_s), 1),
        "p50_ms": percentile(one.latency_ms, 50),
        "p99_ms": percentile(one.latency_ms, 99),
    }, outcome


def drawn(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """The distributions as one SVG that can be read on light and on dark paper."""
    low, high = RANGE_DB

    def x(db: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * (db - low) / (high - low)

    def y(part: float) -> float:
        return 12 + (HEIGHT - BOTTOM - 12) * (1 - part)

    def label(at_x: float, at_y: float, text: str) -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="middle" fill="#555">{text}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>SINR of downlink transmissions in {CELLS} cells at three loads</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for part in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<path d="M{LEFT} {y(part):.1f}H{WIDTH - 12}" stroke="#ddd"/>')
        lines.append(label(LEFT - 20, y(part) + 4, f"{part:.0%}"))
    lines += [label(x(db), HEIGHT - 22, str(db)) for db in range(low, high + 1, 10)]
    lines.append(label(x((low + high) / 2), HEIGHT - 6, "SINR, dB"))
    for i, (colour, (name, (db, part))) in enumerate(zip(COLOURS, curves.items(), strict=True)):
        inside = (db + 1 >= low) & (db + 1 <= high)
        points = " ".join(f"{x(a + 1):.1f},{y(b):.1f}" for a, b in zip(db[inside], part[inside], strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{LEFT + 12}" y="{30 + 16 * i}" fill="{colour}">{name} of the PRBs</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated, of each load")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sparse = Flow("sparse", "all", 10_000, 0.1, "poisson", site="cloud", bytes_up=[1000], bytes_down=[200])
    work = {"10,000 devices, 1 kB every 10 s": (sparse, 5.0)}
    for name, rate_hz in LOADS.items():
        ftp = f"ftp3,bytes={FILE_BYTES}"
        flow = Flow("files", "all", 570, rate_hz, ftp, site="cloud", bytes_up=[200], bytes_down=[1])
        work[f"570 devices, FTP 3, {name}"] = (flow, 0.0)
    rows, curves = {}, {}
    console = Console(stderr=True)
    for name, (flow, drain_s) in track(work.items(), "simulating", console=console, transient=True):
        runs = [measured(flow, args.seconds, seed, drain_s) for seed in range(1, args.runs + 1)]
        rows[name], outcome = max(runs, key=lambda run: run[0]["times_real"])
        if flow.name == "files" and outcome.many is not None:
            values, part = outcome.many.sinr_cdf(DOWN)
            curves[f"{rows[name]['prbs_down']:.0%}"] = values, part
            rows[name]["sinr_db"] = [int(values[np.searchsorted(part, q)]) for q in (0.05, 0.5, 0.95)]
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.svg:
        args.svg.write_text(drawn(curves), encoding="utf-8")
    if args.json:
        print(json.dumps({"memory_mb": memory_mb, "loads": rows}, indent=1))
        return
    table = Table(
        "load", "x real time", "PRBs down", "Mbit/s a cell", "SINR dB, 5, 50, 95 %", "failed", "p50 ms", "p99 ms"
    )
    for name, row in rows.items():
        sinr = ", ".join(map(str, row.get("sinr_db", [])))
        rest = (f"{row['failed_blocks']:.1%}", *(f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms")))
        table.add_row(
            name, f"{row['times_real']:.1f}", f"{row['prbs_down']:.1%}", f"{row['mbps_a_cell']:.1f}", sinr, *rest
        )
    Console(width=130).print(table)
    print(f"best of {args.runs} runs of {args.seconds:g} s, by CPU time; {memory_mb:.0f} MB at most")


if __name__ == "__main__":
    main()
