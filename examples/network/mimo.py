"""SU against MU MIMO: sixteen cameras ask for more than an office floor's cell carries, one by one or together."""

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.topology import Network
from airserve.network.traffic import Flow

print("cameras' pictures  MIMO  up, Mbit/s  PRBs   p50 latency       p99")
for kilobytes in (50, 100, 200, 400):
    cameras = Flow("cameras", "all", 16, 10, site="mast", bytes_up=[1000 * kilobytes], bytes_down=[200])
    for mimo in ("su", "mu"):
        floor = Network.model_validate(
            {
                "cells": [{"name": "floor", "scenario": "inh", "mimo": mimo}],
                "slices": [{"name": "all"}],
                "sites": [{"name": "mast", "kind": "edge", "delay_ms": 1}],
            }
        )
        seen = twin.run(floor, [cameras], until_s=3, seed=1)
        up, ms = seen.slices[0]["up"], seen.readings["cameras"].latency_ms
        asked = f"{kilobytes:4} kB, 10 Hz"
        times = f"{percentile(ms, 50):8.1f} ms  {percentile(ms, 99):8.1f} ms"
        print(f"{asked:17}  {mimo}    {up['mbps']:10.0f}  {up['share_used']:4.0%}   {times}")
