"""An alarm on cameras' devices: what its priority, a slice of its own and a configured grant do to its latency."""

from airserve.contract import percentile
from airserve.network import twin
from airserve.network.channels import Channel, ConfiguredGrant
from airserve.network.topology import Network
from airserve.network.traffic import Flow

hall = Network.model_validate(
    {
        "cells": [{"name": "hall"}],
        "slices": [{"name": "video", "max": 90}, {"name": "urgent", "five_qi": 82, "min": 10}],
        "sites": [{"name": "mast", "kind": "edge", "cores": 8, "delay_ms": 1}],
    }
)
own = ConfiguredGrant(period_ms=5, bytes=200)
print("alarm                               p50       p99  pictures' p99")
for said, where, channel in (
    ("after the pictures, owed nothing", "video", Channel(priority=16, prioritised_kbytes_s=0)),
    ("after them, owed 8 kB/s", "video", Channel(priority=16)),
    ("before them", "video", Channel(priority=1)),
    ("before them, in its own slice", "urgent", Channel(priority=1)),
    ("with a configured grant", "urgent", Channel(priority=1, configured_grant=own)),
):
    pictures = Flow("pictures", "video", 4, 3, site="mast", bytes_up=[1_000_000], bytes_down=[200])
    alarm = Flow(
        "alarm", where, 4, 20, "poisson", site="mast", bytes_up=[200], bytes_down=[50],
        devices_of="pictures", channel=channel,
    )  # fmt: skip
    run = twin.run(hall, [pictures, alarm], until_s=5, seed=1)
    p50, p99 = (percentile(run.readings["alarm"].latency_ms, q) for q in (50, 99))
    print(f"{said:33}{p50:5.1f} ms  {p99:5.1f} ms  {percentile(run.readings['pictures'].latency_ms, 99):8.1f} ms")
