"""What several cells did: their books, and how well devices heard and were heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from airserve.model import Array
from airserve.network.association import Surroundings
from airserve.network.buffers import DOWN, UP
from airserve.network.interference import LOWEST_DB

PERCENTILES = (5, 50, 95)
WAYS = (("up", UP), ("down", DOWN))


@dataclass(frozen=True)
class Many:
    """The cells of a run. Arrays have the direction last: 0 down, 1 up.

    SINR is of first transmissions, on one layer and before EVM, so that it says how cells disturb each other.
    """

    names: tuple[str, ...]
    there: Surroundings  # at the start
    serving: Array  # int64 (ue,): cell of each device at the end
    share_used: Array  # float64 (second, cell, 2), of the PRBs
    mbps: Array  # float64 (second, cell, 2), application bytes delivered
    second_s: Array  # float64 (second,): 1, but for the last
    sinr: Array  # int64 (cell, 2, bin): transmissions by whole dB from `interference.LOWEST_DB` on
    handovers: Array  # int64 (cell, 3): out of it, made, failed, and of those made back to the cell left within 1 s
    position_m: Array  # float64 (ue, 2): at the end
    device_sinr_db: Array  # float64 (ue, 2): mean in dB; nan where nothing was sent

    def rows(self) -> list[dict[str, Any]]:
        """A row a cell, plain data: devices at the end, and for each direction PRBs, rate and SINR."""
        weight = self.second_s / self.second_s.sum()
        share, mbps = (np.einsum("s,scd->cd", weight, what) for what in (self.share_used, self.mbps))
        devices = np.bincount(self.serving, minlength=len(self.names))
        return [
            {
                "name": name,
                "devices": int(devices[k]),
                "handovers": dict(zip(("made", "failed", "ping_pong"), self.handovers[k].tolist(), strict=True)),
                **{
                    way: {
                        "share_used": round(float(share[k, d]), 6),
                        "mbps": round(float(mbps[k, d]), 6),
                        "sinr_db": sinr_percentiles(self.sinr[k, d]),
                    }
                    for way, d in WAYS
                },
            }
            for k, name in enumerate(self.names)
        ]

    def sinr_cdf(self, direction: int) -> tuple[Array, Array]:
        """Whole dB, and the part of all cells' transmissions of a direction whose SINR is below the next."""
        counts = self.sinr[:, direction].sum(axis=0)
        return LOWEST_DB + np.arange(len(counts)), np.cumsum(counts) / max(counts.sum(), 1)


def sinr_percentiles(counts: Array) -> dict[str, float | None]:
    """Of a histogram, to the middle of its bins.

    >>> sinr_percentiles(np.eye(90, dtype=int)[40])
    {'p5': 10.5, 'p50': 10.5, 'p95': 10.5}
    """
    part = np.cumsum(counts) / max(counts.sum(), 1)
    return {
        f"p{q}": float(LOWEST_DB + 0.5 + np.searchsorted(part, q / 100)) if counts.sum() else None for q in PERCENTILES
    }
