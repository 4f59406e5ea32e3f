"""The downlink of a cell in the twin's MAC against an LTE cell in ns-3 3.44: rate and delay at the same SINR.

python bench/lte.py        (g++, pip, half a gigabyte in a cache; some minutes)

Both: FDD, 15 kHz, ten devices at one SINR, Poisson packets of 1,400 bytes, proportional fair, HARQ, RLC. Rates are by
PRB, for ns-3 has 100 and NR 106 in 20 MHz. Loads are parts of what each carries when it is full.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

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


def ours(network: Network, sinr_db: float, mbps: float, seconds: float, seed: int) -> dict[str, Any]:
    """The same of the MAC, on a channel that stands still."""
    snr_db = -10 * np.log10(10 ** (-sinr_db / 10) - EVM**2)  # the MAC adds the transmitter's EVM to it
    flat = np.full((DEVICES, 1, 1), snr_db, np.float32)
    mac = Mac(network, [0] * DEVICES, seed=seed, trace=Trace("inf-dh", 0.01, flat, flat, np.zeros((DEVICES, 3)), {}))
    rng = np.random.default_rng(seed)
    n = rng.poisson(mbps * 1e6 / 8 / NBYTES * (seconds + 0.5))
    at_s = np.sort(rng.uniform(0.5, seconds + 1, n))
    mac.offer_all(rng.integers(0, DEVICES, n), DOWN, NBYTES, at_s)
    mac.run(1)
    done = mac.run(seconds + 1)
    fresh = done[done["arrived_s"] >= 1]
    return {"mbps": done["nbytes"].sum() * 8e-6 / seconds,
            "delay_ms": (fresh["delivered_s"] - fresh["arrived_s"]) * 1e3}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sinr", type=float, nargs="+", default=[6, 12, 18], help="dB")
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated, of each run")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "airserve" / "ns3")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    program = build(args.cache)
    network = Network.model_validate(
        {"cells": [FDD], "slices": [{"name": "all"}], "sites": [{"name": "mast", "kind": "edge"}]}
    )
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
