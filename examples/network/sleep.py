"""What sleep saves and what it costs: sensors that ask every five seconds, by how deep they sleep in between."""

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.topology import Network
from airserve.network.traffic import Flow

WAYS = {
    "always listening": {},
    "C-DRX, cycle 40 ms": {"drx_cycle_ms": 40},
    "C-DRX, cycle 320 ms": {"drx_cycle_ms": 320},
    "released after 1 s": {"always_on": False, "inactivity_ms": 1000},
}

print("sensors are          ue      p50 latency       p99  power  deep sleep")
for way, keys in WAYS.items():
    for ue in ("full", "redcap"):
        hall = Network.model_validate(
            {
                "cells": [{"name": "hall", **keys}],
                "slices": [{"name": "all"}],
                "sites": [{"name": "mast", "kind": "edge"}],
            }
        )
        sensors = Flow("ask", "all", 20, 0.2, "poisson", site="mast", bytes_up=[300], bytes_down=[300], ue=ue)
        seen = twin.run(hall, [sensors], until_s=100, seed=1)
        p50, p99 = (percentile(seen.readings["ask"].latency_ms, q) for q in (50, 99))
        power, deep = seen.power["ask"].mean(), seen.states["ask"]["deep_sleep"]
        print(f"{way:20} {ue:7} {p50:8.1f} ms {p99:6.1f} ms {power:6.1f} {deep:10.0%}")
