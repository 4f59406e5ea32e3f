"""What the load of neighbours does: every cell's transmissions are heard in all others, slot by slot."""

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.buffers import DOWN
from airserve.network.topology import Network
from airserve.network.traffic import Flow

street = Network.model_validate(
    {
        "cells": [{"name": "street", "scenario": "umi", "trps": 21}],
        "slices": [{"name": "control", "min": 20}, {"name": "files"}],
        "sites": [{"name": "mast", "kind": "edge", "cores": 100}],
    }
)
robots = Flow("robots", "control", 42, 5, site="mast", bytes_up=[900], bytes_down=[10_000])

print("PRBs used by files  SINR down, 5 %  50 %  robots p50      p99")
for rate_hz in (0, 1, 2, 4):
    files = (
        [Flow("files", "files", 210, rate_hz, "ftp3", site="mast", bytes_up=[200], bytes_down=[1])] if rate_hz else []
    )
    run = twin.run(street, [robots, *files], until_s=5, seed=1, drain_s=1)
    db, part = run.many.sinr_cdf(DOWN)
    low, middle = (db[part.searchsorted(q)] for q in (0.05, 0.5))
    p50, p99 = (percentile(run.readings["robots"].latency_ms, q) for q in (50, 99))
    used = f"{run.slices[1]['down']['share_used']:.0%}"
    print(f"{used:>18}  {low:11.0f} dB  {middle:.0f} dB  {p50:7.1f} ms  {p99:4.1f} ms")
