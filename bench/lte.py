"""The downlink of a cell in the twin's MAC against an LTE cell in ns-3 3.44: rate and delay at the same SINR.

python bench/lte.py        (g++, pip, half a gigabyte in a cache; some minutes)

Both: FDD, 15 kHz, ten devices at one SINR, Poisson packets of 1,400 bytes, proportional fair, HARQ, RLC. Rates are by
PRB, for ns-3 has 100 and NR 106 in 20 MHz. Loads are parts of what each carries when it is full.

--alike takes apart why delays differ: our cell at the SINR at which it carries what that of ns-3 does when full, under
the same bytes, once as it is, and once with one grant a slot, as the scheduler of ns-3 has it when all PRBs are equally
good; and a queue that is served so and has no radio.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.model import Array
from airserve.network.link import EVM
from airserve.network.mac import DOWN, Mac
from airserve.network.radio import Trace
from airserve.network.topology import Network

WHEEL = "ns3==3.44.post0"
LIBRARIES = (
    "lte applications internet point-to-point mobility spectrum propagation buildings antenna network stats core"
)
SOURCE = Path(__file__).with_name("ns3_lte.cc")
DEVICES, NBYTES, PRBS_LTE = 10, 1_400, 100
WINDOW, PIPELINE_MS = 99, 3  # of the average of ns-3, in subframes; from its MAC to the end of the subframe on the air
LOADS = (0.3, 0.6, 0.9)
AT_0_DBM_DB = -6.527  # SINR that ns-3 reports for all devices when its base station sends 0 dBm
FDD = {"name": "hall", "duplex": "fdd", "scs_khz": 15, "bandwidth_mhz": 20, "carrier_ghz": 2.1}


def build(cache: Path) -> Path:
    """The program, built against the wheel's libraries; both are kept in a folder."""
    packages, program = cache / "packages", cache / "ns3_lte"
    if not shutil.which("g++"):
        sys.exit("g++ is not here; install it (Debian: apt-get install g++).")
    if not (packages / "ns3").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), WHEEL]
        subprocess.run(pip, check=True)
    if not program.is_file() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        found = packages / "ns3" / "lib64"
        command = ["g++", "-std=c++20", "-O1", f"-I{packages / 'ns3' / 'include'}", str(SOURCE), "-o", str(program),
                   f"-L{found}", f"-Wl,-rpath,{found}", "-Wl,--allow-shlib-undefined", "-Wl,-z,lazy"]  # fmt: skip
        linked = [f"-lns3.44-{name}" for name in LIBRARIES.split()]
        subprocess.run([*command, *linked], check=True, stderr=subprocess.DEVNULL)
    return program


def theirs(program: Path, sinr_db: float, mbps: float, seconds: float, seed: int) -> dict[str, Any]:
    """One run of ns-3: SINR that it reports, Mbit/s and delays in ms."""
    words = {"mbps": mbps, "seconds": seconds, "seed": seed, "power": sinr_db - AT_0_DBM_DB, "ues": DEVICES}
    ran = subprocess.run([str(program), *(f"--{key}={value}" for key, value in words.items())],
                         capture_output=True, text=True, check=True)  # fmt: skip
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def ours(
    network: Network, sinr_db: float, mbps: float, seconds: float, seed: int, *, one_a_slot: bool = False
) -> dict[str, Any]:
    """The same of the MAC, on a channel that stands still; `one_a_slot`: its PDCCH has room for one grant alone."""
    snr_db = -10 * np.log10(10 ** (-sinr_db / 10) - EVM**2)  # the MAC adds the transmitter's EVM to it
    flat = np.full((DEVICES, 1, 1), snr_db, np.float32)
    mac = Mac(network, [0] * DEVICES, seed=seed, trace=Trace("inf-dh", 0.01, flat, flat, np.zeros((DEVICES, 3)), {}))
    if one_a_slot:
        mac._config = mac._config._replace(cces=(1, 1))
    rng = np.random.default_rng(seed)
    n = rng.poisson(mbps * 1e6 / 8 / NBYTES * (seconds + 0.5))
    at_s = np.sort(rng.uniform(0.5, seconds + 1, n))
    mac.offer_all(rng.integers(0, DEVICES, n), DOWN, NBYTES, at_s)
    mac.run(1)
    done = mac.run(seconds + 1)
    fresh = done[done["arrived_s"] >= 1]
    return {"mbps": done["nbytes"].sum() * 8e-6 / seconds,
            "delay_ms": (fresh["delivered_s"] - fresh["arrived_s"]) * 1e3}  # fmt: skip


def polled_ms(full_mbps: float, mbps: float, seconds: float, seed: int, *, by_bytes: bool = False) -> Array:
    """Delays of a queue that has nothing of a radio but this: each subframe goes whole to one device, three after it.

    Of those with packets that which has had the fewest turns of late, as proportional fair has it when it counts what
    was granted and all have the same rate; `by_bytes`: the fewest bytes sent, as where it counts those. A subframe
    carries what the full cell does, a packet less what it began.
    """
    rng, room = np.random.default_rng(seed), full_mbps * 1e3 / 8
    until = int(1e3 * (seconds + 1))
    at_ms = np.sort(rng.uniform(0, until, rng.poisson(mbps * 1e3 / 8 / NBYTES * until)))
    device, waiting = rng.integers(0, DEVICES, len(at_ms)), [deque[float]() for _ in range(DEVICES)]
    turns, begun, found, come = np.zeros(DEVICES), np.zeros(DEVICES), [], 0
    for now in range(until):
        while come < len(at_ms) and at_ms[come] <= now:
            waiting[device[come]].append(float(at_ms[come]))
            come += 1
        turns *= 1 - 1 / WINDOW
        some = [k for k in range(DEVICES) if waiting[k]]
        if not some:
            continue
        chosen = min(some, key=lambda k: (turns[k], rng.random()))
        left = room + begun[chosen]
        while waiting[chosen] and left >= NBYTES:
            found.append((now + PIPELINE_MS - waiting[chosen][0], waiting[chosen].popleft()))
            left -= NBYTES
        turns[chosen] += 1 - left / (room + begun[chosen]) * (not waiting[chosen]) if by_bytes else 1
        begun[chosen] = left if waiting[chosen] else 0.0
    return np.array([delay for delay, arrived in found if arrived >= 1e3])


def as_fast_as(network: Network, mbps: float, near_db: float) -> float:
    """SINR in dB at which the MAC carries so much when full, to 0.1 dB."""
    low, high = near_db - 6, near_db + 1
    while high - low > 0.1:
        middle = (low + high) / 2
        low, high = (middle, high) if ours(network, middle, 120, 2, 1)["mbps"] < mbps else (low, middle)
    return high


def alike(program: Path, network: Network, sinr_db: float, seconds: float) -> dict[str, Any]:
    """Delays of ns-3, of a queue like its own, and of the MAC where it carries as much: many grants a slot, and one."""
    full = theirs(program, sinr_db, 120, 2, 1)
    own_db, loads = as_fast_as(network, full["mbps"], sinr_db), []
    for load in LOADS:
        mbps = load * full["mbps"]
        delays = {
            "ns3_ms": theirs(program, sinr_db, mbps, seconds, 1)["delay_ms"],
            "queue_ms": polled_ms(full["mbps"], mbps, seconds, 1),
            "queue_by_bytes_ms": polled_ms(full["mbps"], mbps, seconds, 1, by_bytes=True),
            "twin_ms": ours(network, own_db, mbps, seconds, 1)["delay_ms"],
            "twin_one_a_slot_ms": ours(network, own_db, mbps, seconds, 1, one_a_slot=True)["delay_ms"],
        }
        percentiles = {name: np.percentile(ms, (1, 50, 99)).tolist() for name, ms in delays.items()}
        loads.append({"load": load, **percentiles})
    return {"sinr_db": full["sinr_db"], "twin_sinr_db": own_db, "mbps": full["mbps"], "loads": loads}


def print_alike(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "SINR dB: ns-3, twin", "Mbit/s", "load", "p1, p50, p99 ms: ns-3", "queue", "by bytes", "twin", "one grant"
    )
    keys = ("ns3_ms", "queue_ms", "queue_by_bytes_ms", "twin_ms", "twin_one_a_slot_ms")
    for row in rows:
        first = [f"{row['sinr_db']:.1f}, {row['twin_sinr_db']:.1f}", f"{row['mbps']:.1f}"]
        for one in row["loads"]:
            spread = (", ".join(f"{ms:.1f}" for ms in one[key]) for key in keys)
            table.add_row(*first, f"{one['load']:.0%}", *spread)
            first = [""] * 2
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sinr", type=float, nargs="+", default=[6, 12, 18], help="dB")
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated, of each run")
    parser.add_argument("--alike", action="store_true", help="at SINRs of equal rate")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "airserve" / "ns3")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    program = build(args.cache)
    network = Network.model_validate(
        {"cells": [FDD], "slices": [{"name": "all"}], "sites": [{"name": "mast", "kind": "edge"}]}
    )
    if args.alike:
        console = Console(stderr=True)
        found = [alike(program, network, db, args.seconds) for db in track(args.sinr, console=console, transient=True)]
        print(json.dumps(found, indent=1)) if args.json else print_alike(found)
        return
    prbs = network.cell.prbs
    rows = []
    for sinr_db in track(args.sinr, "simulating", console=Console(stderr=True), transient=True):
        full = theirs(program, sinr_db, 120, 2, 1), ours(network, sinr_db, 120, 2, 1)
        kbps = full[0]["mbps"] / PRBS_LTE * 1e3, full[1]["mbps"] / prbs * 1e3
        row = {"sinr_db": full[0]["sinr_db"], "ns3_kbps_prb": kbps[0], "twin_kbps_prb": kbps[1], "loads": []}
        for load in LOADS:
            runs = (theirs(program, sinr_db, load * full[0]["mbps"], args.seconds, 1),
                    ours(network, sinr_db, load * full[1]["mbps"], args.seconds, 1))  # fmt: skip
            times = [np.percentile(run["delay_ms"], (1, 50, 99)).tolist() for run in runs]
            row["loads"].append({"load": load, "ns3_ms": times[0], "twin_ms": times[1]})
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "SINR dB", "kbit/s a PRB: ns-3", "twin", "apart", "load", "p1, p50, p99 ms: ns-3", "twin", "p99 apart"
    )
    for row in rows:
        rate = [f"{row['sinr_db']:.1f}", f"{row['ns3_kbps_prb']:.0f}", f"{row['twin_kbps_prb']:.0f}",
                f"{row['twin_kbps_prb'] / row['ns3_kbps_prb'] - 1:+.0%}"]  # fmt: skip
        for one in row["loads"]:
            spread = (", ".join(f"{ms:.1f}" for ms in one[key]) for key in ("ns3_ms", "twin_ms"))
            table.add_row(*rate, f"{one['load']:.0%}", *spread, f"{one['twin_ms'][2] / one['ns3_ms'][2] - 1:+.0%}")
            rate = [""] * 4
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
