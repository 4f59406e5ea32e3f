"""What reduced capability does to latency: 20 devices of each kind, 10 requests a second each, memoryless.

python bench/redcap.py [SCENARIO]
"""

import sys

from rich.console import Console
from rich.table import Table

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.topology import Network
from airserve.network.traffic import Flow

KINDS = ("full", "redcap,antennas=2,qam=256", "redcap,antennas=2", "redcap")
LOADS = {"15 kB up": (15_000, 200), "60 kB down": (200, 60_000)}
SECONDS = 60.0


def main() -> None:
    hall = Network.model_validate(
        {
            "cells": [{"name": "hall", "scenario": sys.argv[1] if sys.argv[1:] else "inf-dh"}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge"}],
        }
    )
    table = Table("load", "ue", "p50 ms", "p99 ms", "PRBs", "power")
    for load, (up, down) in LOADS.items():
        for kind in KINDS:
            flow = Flow("ask", "all", 20, 10.0, "poisson", site="mast", bytes_up=[up], bytes_down=[down], ue=kind)
            seen = twin.run(hall, [flow], until_s=SECONDS, seed=1)
            used = seen.slices[0]["up" if up > down else "down"]["share_used"]
            times = (f"{percentile(seen.readings['ask'].latency_ms, q):.1f}" for q in (50, 99))
            table.add_row(load, kind, *times, f"{used:.1%}", f"{seen.power['ask'].mean():.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
