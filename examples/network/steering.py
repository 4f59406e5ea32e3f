"""A site moved from cloud to edge at run time: a controller changes the user-plane function's rules."""

import numpy as np

from airserve.network import twin
from airserve.network.core import View
from airserve.network.topology import Network, Rule
from airserve.network.traffic import Flow

hall = Network.model_validate(
    {
        "cells": [{"name": "hall", "sr_period_ms": 5}],
        "slices": [{"name": "all"}],
        "sites": [
            {"name": "mast", "kind": "edge", "cores": 2, "speed": 0.5, "delay_ms": 1},
            {"name": "region", "kind": "cloud", "cores": 8, "delay_ms": 20},
        ],
    }
)
cameras = Flow("cameras", "all", 20, 5, site="region", bytes_up=[14_500], bytes_down=[200], site_seconds=[0.005])


def control(view: View) -> list[Rule] | None:
    """Asked every second: after 4 s, to the edge as soon as p99 passes 50 ms."""
    p99 = np.percentile(view.latency_ms["cameras"], 99) if view.now_s >= 4 else 0
    return [Rule(service="cameras", forward="mast")] if p99 > 50 else None


seen = twin.run(hall, [cameras], until_s=8, seed=1, control=control).readings["cameras"]
print("second   p50 ms   p99 ms")
for second in range(8):
    ms = seen.latency_ms[seen.sent_s.astype(int) == second]
    print(f"{second:6}  {np.percentile(ms, 50):7.1f}  {np.percentile(ms, 99):7.1f}")
