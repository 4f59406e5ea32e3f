"""Where a carrier's bits go, item by item, and what one saturated device gets of them in the MAC.

python bench/fidelity.py
"""

import argparse
import json

import numpy as np
from rich.console import Console
from rich.table import Table

from airserve.network.budget import Budget, budget
from airserve.network.link import Direction
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.radio import Trace
from airserve.network.topology import Network

CELL = {"name": "hall"}
WAYS: tuple[tuple[Direction, int], ...] = (("down", DOWN), ("up", UP))


def measured_mbps(network: Network, direction: int, whole: Budget, seconds: float = 2.0) -> float:
    """Application bytes of one device that asks for more than there is, on a clean channel of one layer."""
    snr_db = np.full((1, 1, 1), 60, np.float32)
    trace = Trace("inf-dh", 0.01, snr_db, snr_db, np.zeros((1, 3), np.float32), {})
    mac = Mac(network, [0], seed=1, trace=trace, grant="configured")
    for _ in range(int(1.2 * seconds * whole.goodput_mbps * 1e6 / 8 / 14_000)):
        mac.offer(0, direction, 14_000, 0.0)
    mac.run(seconds)
    return float(mac.usage().mbps[0, direction])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    network = Network.model_validate(
        {"cells": [CELL], "slices": [{"name": "all"}], "sites": [{"name": "mast", "kind": "edge"}]}
    )
    wholes = {way: budget(network.cell, way, layers=1) for way, _ in WAYS}
    measured = {way: measured_mbps(network, direction, wholes[way]) for way, direction in WAYS}
    if args.json:
        rows = {way: {**vars(wholes[way]), "measured_mbps": measured[way]} for way, _ in WAYS}
        print(json.dumps(rows, indent=1))
        return
    table = Table("Mbit/s, 100 MHz, 30 kHz, DDDSU, 256QAM, one layer", "down", "up")
    table.add_row("all resource elements of all slots", *(f"{wholes[way].raw_mbps:.1f}" for way, _ in WAYS))
    for name in dict.fromkeys(name for way, _ in WAYS for name in wholes[way].items):
        table.add_row(f"- {name}", *(f"{wholes[way].items.get(name, 0.0):.2f}" for way, _ in WAYS))
    table.add_row("= application bytes", *(f"{wholes[way].goodput_mbps:.1f}" for way, _ in WAYS))
    table.add_row("measured", *(f"{measured[way]:.1f}" for way, _ in WAYS))
    table.add_row(
        "TS 38.306 4.1.2, as if all slots went one way", *(f"{wholes[way].formula_mbps:.1f}" for way, _ in WAYS)
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
