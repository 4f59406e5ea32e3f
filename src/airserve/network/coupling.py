"""Coupling loss from UEs to every cell round them: the second pass of a radio trace (Sionna, extra `radio`).

Coupling loss is TR 36.873 8's: path loss, shadowing, penetration, element gains and fading between one port and one
antenna, mean over both polarizations and the band. The array's gain is not in it: beams of other cells point elsewhere,
and a beam of no particular direction gains nothing in the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from airserve.model import Array
from airserve.network.lattice import HALLS, cells
from airserve.network.radio import OUT_OF_RANGE, RANGE_DB

LINKS_AT_ONCE = 20_000  # links times snapshots: about 0.6 GB


def cell_gains(
    scenario: str,
    channel: Any,
    topology: dict[str, Any],
    own_gain: Array,
    *,
    outdoor_los: Array,
    indoor_m: Array,
    snapshot_s: float,
    seed: int,
) -> Array:
    """Power gain from each UE to each cell of `layout.cells`, float (ue, snapshot, cell).

    `own_gain` (ue, snapshot), `outdoor_los` bool (ue,) and `indoor_m` (ue,) are those of the link to the trace's own
    cell, made before: its gain is taken over, and sectors of its site see the same line of sight, depth of building
    and shadow. `channel(kind)` makes Sionna's model with single elements of a pattern. Sets Sionna's global seed.
    """
    import torch
    from sionna.phy import config

    ues, snapshots = own_gain.shape
    places, turns = cells(scenario, topology["bs_loc"][0, 0].numpy(), topology["bs_orientations"][0, 0].numpy())
    hall = scenario in HALLS
    others = slice(1 if hall else 0, None)
    model = channel("omni" if hall else "38.901")
    gains = [own_gain[..., None]] if hall else []
    step = max(1, LINKS_AT_ONCE // (len(places) * snapshots))
    here = {
        "bs_loc": torch.tensor(places[None, others], dtype=torch.float32),
        "bs_orientations": torch.tensor(turns[None, others], dtype=torch.float32),
    }
    found = []
    for first in range(0, ues, step):
        some = slice(first, min(ues, first + step))
        config.seed = int(np.random.SeedSequence([seed, 2, first]).generate_state(1)[0])
        place = {key: value[:, some] for key, value in topology.items() if key.startswith("ut_") or key == "in_state"}
        depth = {} if hall else {"distance_2d_in": torch.tensor(indoor_m[None, some], dtype=torch.float32)}
        model.reset_topology()
        model.set_topology(**place, **here, **depth, los="random")
        if not hall:
            los = model._scenario.outdoor_los.clone()
            los[:, :3] = torch.tensor(outdoor_los[some])
            model.set_topology(**place, **here, **depth, los=los)
        impulses, _ = model(snapshots, 1 / snapshot_s)  # 1, ue, ue antenna, cell, port, path, time
        power = impulses.abs().square().sum(5).mean((2, 4))[0]  # ue, cell, time
        found.append(power.permute(0, 2, 1).numpy().astype(np.float64))
    gain = np.concatenate([*gains, np.concatenate(found)], -1)
    if not hall:
        gain[..., :3] *= (own_gain.mean(1) / gain[..., 0].mean(1))[:, None, None]
        gain[..., 0] = own_gain
    return gain


def coupling_loss_db(gain: Array) -> Array:
    """Whole dB, uint8 (ue, snapshot, cell); 255 for a cell that is in the mean 30 dB weaker than a UE's best.

    >>> coupling_loss_db(np.array([[[1e-9, 1e-10, 1e-13]]])).tolist()
    [[[90, 100, 255]]]
    """
    mean_db = 10 * np.log10(np.maximum(gain.mean(axis=1, keepdims=True), 1e-30))
    near = mean_db >= mean_db.max(axis=-1, keepdims=True) - RANGE_DB
    loss_db = np.clip(np.rint(-10 * np.log10(np.maximum(gain, 1e-30))), 0, OUT_OF_RANGE - 1)
    return np.where(near, loss_db, OUT_OF_RANGE).astype(np.uint8)
