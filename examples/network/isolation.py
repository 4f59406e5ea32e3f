"""Slice isolation under flood: ten robots beside backups that fill the cell, under each slice policy."""

from airserve import catalog
from airserve.contract import percentile
from airserve.network import twin
from airserve.network.slicing import promises
from airserve.network.topology import Network
from airserve.network.traffic import Flow

robots = Flow("robots", "control", 10, 20, site="mast", bytes_up=[15_000], bytes_down=[200], site_seconds=[0.001])
backups = Flow("backups", "bulk", 20, 5, "poisson", site="mast", bytes_up=[400_000], bytes_down=[200])

print("policy        robots alone  beside backups  backups, Mbit/s  promises")
for policy in catalog.slices:
    hall = Network.model_validate(
        {
            "cells": [{"name": "hall", "slicing": policy}],
            "slices": [{"name": "control", "five_qi": 82, "dedicated": 10, "min": 40}, {"name": "bulk", "min": 20}],
            "sites": [{"name": "mast", "kind": "edge", "cores": 8, "delay_ms": 1}],
        }
    )
    alone = twin.run(hall, [robots], until_s=5, seed=1)
    flood = twin.run(hall, [robots, backups], until_s=5, seed=1)
    p99 = [percentile(run.readings["robots"].latency_ms, 99) for run in (alone, flood)]
    mbps = flood.slices[1]["up"]["mbps"]
    print(f"{policy:12}  {p99[0]:9.1f} ms  {p99[1]:11.1f} ms  {mbps:15.0f}  {', '.join(sorted(promises(policy)))}")
