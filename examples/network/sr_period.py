"""What the scheduling-request period does to uplink latency: a device must ask before it may send."""

from airserve.contract import Span, percentile
from airserve.network import twin
from airserve.network.topology import Network
from airserve.network.traffic import Flow

sensors = Flow("sensors", "all", 20, 5, site="mast", bytes_up=[900], bytes_down=[200])

print("SR period  wait for a grant, mean  latency p50      p99")
for period_ms in (2.5, 5, 10, 20, 40, None):
    hall = Network.model_validate(
        {
            "cells": [{"name": "hall", "sr_period_ms": period_ms or 20}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge", "delay_ms": 1}],
        }
    )
    run = twin.run(hall, [sensors], until_s=20, seed=1, grant="sr" if period_ms else "configured")
    seen = run.readings["sensors"]
    wait_ms = seen.ms[:, seen.spans.index(Span("wait", "up", "hall"))]
    p50, p99 = (percentile(seen.latency_ms, q) for q in (50, 99))
    name = f"{period_ms:g} ms" if period_ms else "granted"
    print(f"{name:>9}  {wait_ms.mean():19.1f} ms  {p50:8.1f} ms  {p99:4.1f} ms")
