"""Make the radio traces that ship with the package; print their cost and quality: bench/traces.py [SCENARIO ...]."""

import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.progress import Progress

from airserve.network import link, radio, tracing
from airserve.network.cell import Cell, Scenario

SHIPPED = get_args(Scenario)
UES, SNAPSHOTS, SEED = 50, 100, 1


def main() -> None:
    torch.set_num_threads(1)
    for scenario in sys.argv[1:] or SHIPPED:
        cell = Cell(name="hall", scenario=scenario)  # type: ignore[arg-type]
        with Progress() as bar:
            task = bar.add_task(scenario, total=UES)
            started = time.process_time()
            trace = tracing.make(
                scenario, cell=cell, ues=UES, snapshots=SNAPSHOTS, seed=SEED,
                progress=lambda done, _, bar=bar, task=task: bar.update(task, completed=done),
            )  # fmt: skip
            spent_ms = (time.process_time() - started) * 1e3 / (UES * SNAPSHOTS)
        path = Path(radio.__file__).parent / "traces" / radio.file_name(cell)
        tracing.save(trace, path)
        print(f"{scenario}: {spent_ms:.2f} ms of CPU per UE and snapshot, {path.stat().st_size} bytes")
        print(f"  made by {trace.made_by}")
        for direction, snr_db in (("down", trace.snr_down_db), ("up", trace.snr_up_db)):
            quarters = [np.percentile(snr_db[..., r], (5, 50, 95)).round().tolist() for r in range(snr_db.shape[-1])]
            _, layers, _ = radio.rates(trace, direction)
            print(
                f"  {direction}: SNR at 5, 50, 95 % by layers {quarters} dB, layers {np.bincount(layers.ravel())[1:]}"
            )
        late, ideal = (
            tracing.make(scenario, cell=cell, ues=UES, snapshots=5, seed=SEED, csi=csi) for csi in ("sounded", "ideal")
        )
        within = (ideal.snr_down_db < 59) & (late.snr_down_db > -39)  # SNR is kept from -40 to 60 dB
        lost_db = np.where(within, ideal.snr_down_db.astype(float) - late.snr_down_db, np.nan)
        lost_db = np.nanmean(lost_db, axis=(0, 1))
        print(f"  precoding loss against SVD on the channel itself, mean by layers: {lost_db.round(2).tolist()} dB")
        for layers in (1, 2):
            print(f"  uplink capacity with {layers} layer(s) at most: {uplink_mbps(trace, cell, layers):.0f} Mbit/s")


def uplink_mbps(trace: radio.Trace, cell: Cell, max_layers: int) -> float:
    """Mean over UEs and time of full-band transport blocks that arrive, 14 symbols in each U slot, without HARQ."""
    mcs, layers, sinr_db = radio.rates(trace, "up", max_layers=max_layers)
    elements = cell.prbs * link.resource_elements(14, 12)
    bits = np.mean(
        [
            link.tbs_bits(elements, link.QM[m], link.RATE[m], n) * (1 - link.bler(s, m))
            for m, n, s in zip(mcs.ravel(), layers.ravel(), sinr_db.ravel(), strict=True)
        ]
    )
    return float(bits * cell.tdd.count("U") / len(cell.tdd) / cell.slot_ms / 1e3)


if __name__ == "__main__":
    main()
