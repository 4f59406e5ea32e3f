"""Where base station and UEs of a radio trace stand: TR 38.901 Tables 7.8-1, -2 and -7."""

from __future__ import annotations

from typing import Any

import numpy as np

from airserve.model import Array
from airserve.network.lattice import HALLS


def drop(scenario: str, carrier_hz: float, ues: int, speed_ms: float, seed: int) -> dict[str, Any]:
    """Where base station and UEs are, as Sionna's `set_topology` takes it: tensors of shape (1, ue or 1, ...).

    A street or a field is dropped by Sionna with its global seed: UEs in the first of three sectors.
    """
    import torch

    rng = np.random.default_rng([seed, 0])
    heading = rng.uniform(0, 2 * np.pi, ues)
    velocity = speed_ms * np.stack([np.cos(heading), np.sin(heading), 0 * heading], -1)
    turned = np.stack([rng.uniform(0, 2 * np.pi, ues), np.zeros(ues), np.zeros(ues)], -1)
    if scenario in HALLS:
        hall = HALLS[scenario]
        place = np.stack(
            [
                rng.uniform(1, hall.length_m, ues),  # at least 1 m from the wall of the base station
                rng.uniform(0, hall.width_m, ues),
                np.full(ues, hall.ue_height_m),
            ],
            -1,
        )
        gnb = np.array([[0, hall.width_m / 2, hall.gnb_height_m]])
        tilt = np.arctan2(hall.gnb_height_m - hall.ue_height_m, hall.length_m / 2)  # at the middle of the hall
        boresight, indoor = np.array([[0, tilt, 0]]), np.ones(ues, bool)
    else:
        from sionna.sys import gen_tr38901_multicell_topology

        sectors = gen_tr38901_multicell_topology(scenario, 1, ues, carrier_hz, num_rings=0)
        place, gnb, boresight = sectors[0][0, :ues].numpy(), sectors[1][0, :1].numpy(), sectors[3][0, :1].numpy()
        indoor = sectors[5][0, :ues].numpy()

    def tensor(array: Array) -> Any:
        return torch.tensor(array[None], dtype=torch.bool if array.dtype == bool else torch.float32)

    return {
        "ut_loc": tensor(place), "bs_loc": tensor(gnb), "ut_orientations": tensor(turned),
        "bs_orientations": tensor(boresight), "ut_velocities": tensor(velocity), "in_state": tensor(indoor),
        "los": "random",
    }  # fmt: skip
