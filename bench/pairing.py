"""Multi-user MIMO against the channels themselves, and what it gains: bench/pairing.py [SCENARIO ...] [--pairs 200].

First (extra `radio`): the SINR that the MAC predicts for pairs of UEs at random, from what traces hold (two directions
of the whole band in 8 bits, powers in whole dB), less that of zero-forcing on Sionna's channels, RBG by RBG:
each UE on its strongest direction, or its two strongest, MMSE receivers, effective over the band by mutual
information, EVM left out and all SINRs held under 50 dB. Once the base station knows the channels; once from a sounding
20 ms old and noisy, as in the traces. Groups of 4 (on one layer each and on two) and 8, the most orthogonal of 16,
stand beside. Then the sum rate of 16 devices that always have more to send and get, multi-user over single-user, in the
MAC. The formula was found on seed 1.
"""

import argparse
import json
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airserve.model import Array
from airserve.network import tracing
from airserve.network.cell import Cell, Scenario
from airserve.network.layout import drop
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.pairing import beams, overlap, products, shared_snr
from airserve.network.radio import Trace
from airserve.network.topology import Network

UES, SNAPSHOT_S = 50, 0.01
MOST_DB = 50.0
LEAST_DB = 0.0  # of a UE alone on its layers, to be paired: TS 38.214's lowest MCS needs some -6 dB


def channels(cell: Cell, seed: int) -> tuple[Array, Array, float]:
    """Channels (ue, snapshot, rbg, ue antenna, port), as sounded, and transmit power over noise."""
    import torch
    from sionna.phy import config

    torch.set_num_threads(1)
    config.seed = seed
    topology = drop(cell.scenario, cell.carrier_ghz * 1e9, UES, 0.83, seed)
    age = round(tracing.SOUNDING_AGE_S / SNAPSHOT_S)
    down, up = tracing.power_over_noise(cell.scenario, cell)
    with torch.no_grad():
        model, _ = tracing._channel(cell.scenario, cell)
        h = tracing.responses(model, cell, topology, 1 + age, SNAPSHOT_S)
    old, now = h[:, :-age], h[:, age:]
    return now, tracing._sounded(old, up * tracing.SOUNDING_GAIN, np.random.default_rng(seed)), down


def zero_forced_db(now: Array, known: Array, gain: float, layers: int) -> float:
    """SINR of the first of a group by zero-forcing on what is `known` of channels (ue, rbg, ue antenna, port)."""
    _, left = np.linalg.eigh(known @ _h(known))
    effective = np.moveaxis(_h(left[..., -layers:]) @ known, 0, 1)  # rbg, ue, layer, port
    effective = effective.reshape(len(effective), -1, effective.shape[-1])
    precoder = _h(effective) @ np.linalg.inv(effective @ _h(effective))
    precoder /= np.linalg.norm(precoder, axis=-2, keepdims=True)
    seen = now[0] @ precoder * np.sqrt(gain / (layers * len(now)))  # rbg, ue antenna, stream
    information = []
    for k in range(layers):
        own, others = seen[..., k : k + 1], np.delete(seen, k, axis=-1)
        noise = others @ _h(others) + np.eye(own.shape[-2])
        snr = (_h(own) @ np.linalg.solve(noise, own))[:, 0, 0].real
        information.append(np.interp(10 * np.log10(np.maximum(snr, 1e-9)), GRID_DB, INFORMATION))
    return float(np.interp(np.mean(information), INFORMATION, GRID_DB))


def _h(matrix: Array) -> Array:
    return np.swapaxes(matrix, -1, -2).conj()


GRID_DB = np.arange(-40, MOST_DB + 10, 0.1)
INFORMATION = np.log2(1 + 10 ** (GRID_DB / 10))  # Gaussian: no ceiling hides a difference


def errors_db(cell: Cell, now: Array, known: Array, gain: float, devices: int, layers: int, groups: int) -> Array:
    """Predicted less zero-forced SINR of groups, of one UE each; all are on as many layers."""
    rng = np.random.default_rng(devices)
    alone = tracing._downlink_db(now, known, gain)
    kept = tracing._directions(now, gain)
    error = tracing._csi_error_db(now, known)
    if known is now:
        error = np.full_like(error, -100)
    trace = Trace(
        cell.scenario, SNAPSHOT_S, alone, alone[..., :1], np.zeros((UES, 3)), {}, csi_error_db=error, **kept
    )  # fmt: skip
    found, usable = beams(cell, trace), np.flatnonzero(alone[:, 0, layers - 1] >= LEAST_DB)

    def overlaps(on: int) -> Array:
        """Of each UE, on so many layers, with all layers of each other one."""
        return np.array(
            [[overlap(products(found.vector[i, 0], found.vector[j, 0]), found.share[i, 0, on - 1],
                      found.share[j, 0, layers - 1], on, layers, cell.gnb_ports) for j in range(UES)]
             for i in range(UES)]
        )  # fmt: skip

    common, leaking = overlaps(layers), overlaps(1)
    differences = []
    for _ in range(groups):
        some = rng.permutation(usable)[:16]
        group = list(some[:1]) if devices > 2 else list(some[:2])
        while len(group) < devices:
            clear = [np.prod(1 - common[ue, group]) if ue not in group else 0 for ue in some]
            group.append(some[int(np.argmax(clear))])
        first, others = group[0], group[1:]
        clear, leak = np.prod(1 - common[first, others]), found.error[first, 0] * leaking[first, others].sum()
        snr = 10 ** (alone[first, 0, layers - 1] / 10)
        predicted = shared_snr(snr, clear, leak, layers * devices, cell.ue_antennas, layers)
        actual_db = zero_forced_db(now[group, 0], known[group, 0], gain, layers)
        differences.append(min(10 * np.log10(predicted), MOST_DB) - min(actual_db, MOST_DB))
    return np.array(differences)


EXAMS = {  # of whom, with the channel known, on how many layers each
    "pairs, known": (2, True, 1),
    "pairs, sounded": (2, False, 1),
    "2 layers, known": (2, True, 2),
    "2 layers, sounded": (2, False, 2),
    "of 4": (4, False, 1),
    "of 4, 2 layers": (4, False, 2),
    "of 8": (8, False, 1),
}


def measured_errors(scenario: Scenario, groups: int, seed: int) -> dict[str, Any]:
    """Median error and the 95th percentile of its size, by what is known, devices of a group and layers of each."""
    cell = Cell(name="cell", scenario=scenario, mimo="mu")
    now, sounded, gain = channels(cell, seed)
    row: dict[str, Any] = {}
    for name, (devices, known, layers) in EXAMS.items():
        off = errors_db(cell, now, now if known else sounded, gain, devices, layers, groups)
        row[name] = [float(np.median(off)), float(np.percentile(np.abs(off), 95))]
    return row


def sum_mbps(scenario: Scenario, mimo: str, direction: int, seconds: float, seed: int, ues: int = 16) -> float:
    """Of devices that always have more, after 0.2 s in which the scheduler settles."""
    network = Network.model_validate(
        {
            "cells": [{"name": "cell", "scenario": scenario, "mimo": mimo}],
            "slices": [{"name": "all"}],
            "sites": [{"name": "mast", "kind": "edge"}],
        }
    )
    mac = Mac(network, [0] * ues, seed=seed, max_records=1 << 16)
    for piece in range(int(1 + 3e9 / ues * (0.2 + seconds) / 8 / 50_000)):
        for ue in range(ues):
            mac.offer(ue, direction, 50_000, piece * 1e-6)
    mac.run(0.2)
    before = mac.usage().nbytes.sum()
    mac.run(0.2 + seconds)
    return float((mac.usage().nbytes.sum() - before) * 8e-6 / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=get_args(Scenario))
    parser.add_argument("--pairs", type=int, default=200, help="and groups, of each scenario")
    parser.add_argument("--seconds", type=float, default=1.0, help="simulated, of each sum rate")
    parser.add_argument("--seed", type=int, default=1, help="of channels, noise and the MAC")
    parser.add_argument("--rates", action="store_true", help="sum rates alone, which need no Sionna")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {}
    for scenario in track(args.scenarios, "comparing", console=Console(stderr=True), transient=True):
        row = {} if args.rates else measured_errors(scenario, args.pairs, args.seed)
        for way, direction in (("down", DOWN), ("up", UP)):
            row[way] = [sum_mbps(scenario, mimo, direction, args.seconds, args.seed) for mimo in ("su", "mu")]
        rows[scenario] = row
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    names = list(next(iter(rows.values())))
    table = Table("median, 95 % of |dB|; SU, MU Mbit/s", *names)
    for scenario, row in rows.items():
        off = (f"{row[key][0]:+.2f}, {row[key][1]:.2f}" for key in names if key in EXAMS)
        rates = (f"{row[way][0]:.0f}, {row[way][1]:.0f}: {row[way][1] / row[way][0]:.2f}" for way in ("down", "up"))
        table.add_row(scenario, *off, *rates)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
