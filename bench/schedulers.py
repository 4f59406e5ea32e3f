"""The MAC's proportional fair scheduler and outer loop against those of `sionna.sys`, on the same SNR, by device.

python bench/schedulers.py        (extra `radio`; some minutes)

FDD, 20 MHz at 15 kHz, downlink, one layer; eight devices with full buffers at mean SNRs of 8 to 26 dB, Rician fading
(K = 10 dB) at 3 km/h: the tables of `sionna.sys` begin at MCS 2, so a device in a deep fade would get nothing there and
all of the slots. Both sides see the same SNR behind the same EVM, the same reports and the same delays. Of `sionna.sys`
come the scheduler, the outer loop, the transport blocks and the block errors (its own tables); HARQ, which it has not,
is added here as the MAC has it: chase combining, retransmissions first.
"""

import argparse
import json

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sionna.sys import OuterLoopLinkAdaptation, PFSchedulerSUMIMO, PHYAbstraction

from airserve.network import frame, radio
from airserve.network.adaptation import LOOP_LIMITS_DB, LOOP_STEP_DB, REPORT_DELAY_MS, REPORT_PERIOD_MS
from airserve.network.buffers import wire_bytes
from airserve.network.harq import K1_SLOTS, MAX_ATTEMPTS
from airserve.network.headers import PACKET_BYTES
from airserve.network.link import EFFICIENCY, with_evm_db
from airserve.network.mac import DOWN, Mac
from airserve.network.radio import Trace
from airserve.network.scheduler import BLOCK_OVERHEAD_BYTES, MEMORY
from airserve.network.topology import Network

MEAN_SNR_DB = np.linspace(8, 26, 8)
RICIAN_K = 10.0
SPEED_KMH, CARRIER_HZ, SLOT_S = 3.0, 3.5e9, 1e-3
TABLE, PDSCH = 2, 1  # of sionna: MCS table 2, and its category of tables
SETTLE = 0.25  # of the slots, in which the loops find their way
FDD = {"name": "hall", "duplex": "fdd", "scs_khz": 15, "bandwidth_mhz": 20, "carrier_ghz": 2.1}


def fading_db(slots: int, rng: np.random.Generator) -> np.ndarray:
    """SNR in dB, float32 (devices, slots): a path in sight, and AR(1) with the correlation of Clarke's model."""
    angle = np.linspace(0, np.pi, 10_001)
    doppler_hz = SPEED_KMH / 3.6 / 299_792_458 * CARRIER_HZ
    rho = np.cos(2 * np.pi * doppler_hz * SLOT_S * np.sin(angle)).mean()  # J0
    noise = (rng.standard_normal((slots, len(MEAN_SNR_DB), 2)) @ [1, 1j]) / np.sqrt(2)
    for i in range(1, slots):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    gain = np.sqrt(RICIAN_K / (1 + RICIAN_K)) + noise / np.sqrt(1 + RICIAN_K)
    return (MEAN_SNR_DB + 20 * np.log10(np.abs(gain))).T.astype(np.float32)


def ours(network: Network, trace: Trace, seconds: float, seed: int) -> np.ndarray:
    """Application bits a second of each device in the MAC, after it has settled."""
    ues = len(MEAN_SNR_DB)
    mac = Mac(network, [0] * ues, seed=seed, trace=trace)
    many = int(seconds * 12e6 / 14_000) + 1
    mac.offer_all(np.tile(np.arange(ues), many), DOWN, 14_000, 0.0)
    mac.run(SETTLE * seconds)
    done = mac.run(seconds)
    return np.bincount(done["ue"], done["nbytes"], ues) * 8 / ((1 - SETTLE) * seconds)


def theirs(network: Network, snr_db: np.ndarray, seed: int) -> np.ndarray:
    """The same by `sionna.sys`, for SNRs (drops, slots, devices): bits a second (drops, devices)."""
    torch.manual_seed(seed)
    drops, slots, ues = snr_db.shape
    sinr = torch.as_tensor(10 ** (np.vectorize(with_evm_db)(snr_db) / 10), dtype=torch.float32)
    phy = PHYAbstraction()
    loop = OuterLoopLinkAdaptation(phy, ues, network.cell.target_bler, LOOP_STEP_DB, drops,
                                   offset_min=-LOOP_LIMITS_DB[1], offset_max=-LOOP_LIMITS_DB[0])  # fmt: skip
    fair = PFSchedulerSUMIMO(ues, 1, 1, drops, beta=1 - 1 / MEMORY)
    pattern = frame.pattern(network.cell)["elements"][:, DOWN]
    period, delay = round(REPORT_PERIOD_MS / 1e3 / SLOT_S), round(REPORT_DELAY_MS / 1e3 / SLOT_S)
    rate, carried = torch.zeros(drops, ues), torch.zeros(drops, ues)
    efficiency = torch.as_tensor(EFFICIENCY, dtype=torch.float32)
    waiting: list[list[tuple[int, int, int, float, int]]] = [[] for _ in range(drops)]  # due, device, mcs, sinr, tries
    heard = [torch.full((drops, ues), -1, dtype=torch.int32) for _ in range(K1_SLOTS + 1)]
    every = torch.arange(drops)
    for slot in track(range(slots), "sionna.sys", console=Console(stderr=True), transient=True):
        elements = int(pattern[slot % len(pattern)]) * network.cell.prbs
        allocated = torch.full((drops, ues), elements, dtype=torch.int32)
        reported = sinr[:, max(slot - delay, 0) // period * period]
        feedback = heard[slot % len(heard)]
        mcs = loop(allocated, feedback, reported, TABLE, PDSCH)
        chosen = fair(rate, efficiency[mcs.long()][:, None, None, :]).squeeze(-1)[:, 0, 0].float().argmax(-1)
        mcs_sent = mcs[every, chosen].clone()
        combined = sinr[every, slot, chosen].clone()
        attempts = torch.ones(drops, dtype=torch.int64)
        for b in range(drops):
            if waiting[b] and waiting[b][0][0] <= slot:
                _, chosen[b], mcs_sent[b], before, tried = waiting[b].pop(0)
                combined[b] = before + sinr[b, slot, chosen[b]]
                attempts[b] = tried + 1
        mine = torch.nn.functional.one_hot(chosen, ues).int()
        bits, decoded, *_ = phy(
            mine * mcs_sent[:, None].int(),
            sinr_eff=mine * combined[:, None],
            num_allocated_re=mine * elements,
            mcs_table_index=TABLE,
            mcs_category=PDSCH,
        )
        first = (attempts == 1)[:, None]
        rate = bits.float()
        heard[slot % len(heard)] = torch.where((mine > 0) & first, decoded, -1)
        for b in torch.nonzero(decoded[every, chosen] == 0)[:, 0].tolist():
            if attempts[b] < MAX_ATTEMPTS:
                again = slot + len(heard), int(chosen[b]), int(mcs_sent[b]), float(combined[b]), int(attempts[b])
                waiting[b].append(again)
        if slot >= SETTLE * slots:
            carried += (bits - 8 * BLOCK_OVERHEAD_BYTES).clamp(min=0)
    return (carried / ((1 - SETTLE) * slots * SLOT_S) * PACKET_BYTES / wire_bytes(PACKET_BYTES)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="simulated, of each drop")
    parser.add_argument("--drops", type=int, default=8, help="of the fading")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    network = Network.model_validate(
        {"cells": [FDD], "slices": [{"name": "all"}], "sites": [{"name": "mast", "kind": "edge"}]}
    )
    slots, ues = round(args.seconds / SLOT_S), len(MEAN_SNR_DB)
    mine, seen = [], []
    for drop in range(args.drops):
        snr_db = fading_db(slots + 1, np.random.default_rng(drop))
        trace = Trace("inf-dh", SLOT_S, *2 * [snr_db[..., None]], np.zeros((ues, 3), np.float32), {})
        mine.append(ours(network, trace, args.seconds, seed=drop))
        rows, offsets = radio.assign(trace, ues, np.random.default_rng(drop))  # as the MAC assigns them
        forth_and_back = np.concatenate([snr_db, snr_db[:, -2:0:-1]], axis=1)
        walk = [
            forth_and_back[row, (offset + np.arange(slots)) % (2 * slots)]
            for row, offset in zip(rows, offsets, strict=True)
        ]
        seen.append(np.stack(walk, axis=1))
        mine[-1] = mine[-1][np.argsort(rows)]
        seen[-1] = seen[-1][:, np.argsort(rows)]
    twin, other = np.mean(mine, axis=0) / 1e6, theirs(network, np.stack(seen), 1).mean(axis=0) / 1e6
    apart = twin / other - 1
    if args.json:
        rows = [{"mean_snr_db": float(s), "twin_mbps": float(a), "sionna_mbps": float(b)}
                for s, a, b in zip(MEAN_SNR_DB, twin, other, strict=True)]  # fmt: skip
        print(json.dumps({"devices": rows, "largest_difference": float(np.abs(apart).max())}, indent=1))
        return
    table = Table("mean SNR dB", "Mbit/s here", "sionna.sys", "apart", title="Proportional fair, full buffers")
    for s, a, b, d in zip(MEAN_SNR_DB, twin, other, apart, strict=True):
        table.add_row(f"{s:.0f}", f"{a:.3f}", f"{b:.3f}", f"{d:+.1%}")
    table.add_row("all", f"{twin.sum():.3f}", f"{other.sum():.3f}", f"{twin.sum() / other.sum() - 1:+.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
