"""Path loss of TR 38.901 Table 7.4.1-1, written out here, against what the traces' generator takes."""

from importlib.util import find_spec
from math import log10, pi

import numpy as np
import pytest

from airserve.network import path_loss

GHZ = 3.5
UE_M, GNB_M = 1.5, {"umi": 10.0, "uma": 25.0, "rma": 35.0, "inh": 3.0, "sl": 1.5, "dl": 1.5, "sh": 8.0, "dh": 8.0}


def breaking(near, far, gnb_m, factor):
    """A street's loss: `near` up to the breakpoint, 40 lg d beyond."""

    def loss(d):
        point_m = 4 * (gnb_m - 1) * (UE_M - 1) * GHZ * 1e9 / 3e8
        flat_m = np.sqrt(max(0, d**2 - (gnb_m - UE_M) ** 2))  # 10 m from a mast of 25 m: no place, but a figure
        if flat_m <= point_m:
            return near + (22 if factor == 9 else 21) * log10(d) + 20 * log10(GHZ)
        return far + 40 * log10(d) + 20 * log10(GHZ) - factor * log10(point_m**2 + (gnb_m - UE_M) ** 2)

    return loss


def rma_los(d, high_m=5.0):
    def near(x):
        return (
            20 * log10(40 * pi * x * GHZ / 3) + min(0.03 * high_m**1.72, 10) * log10(x)
            - min(0.044 * high_m**1.72, 14.77) + 0.002 * log10(high_m) * x
        )  # fmt: skip

    point_m = 2 * pi * GNB_M["rma"] * UE_M * GHZ * 1e9 / 3e8
    return near(d) if d <= point_m else near(point_m) + 40 * log10(d / point_m)


def rma_nlos(d, high_m=5.0, wide_m=20.0):
    gnb_m = GNB_M["rma"]
    return (
        161.04 - 7.1 * log10(wide_m) + 7.5 * log10(high_m) - (24.37 - 3.7 * (high_m / gnb_m) ** 2) * log10(gnb_m)
        + (43.42 - 3.1 * log10(gnb_m)) * (log10(d) - 3) + 20 * log10(GHZ) - (3.2 * log10(11.75 * UE_M) ** 2 - 4.97)
    )  # fmt: skip


umi_los, uma_los = breaking(32.4, 32.4, 10.0, 9.5), breaking(28, 28, 25.0, 9)


def factory(constant, slope, frequency=20):
    return lambda d: constant + slope * log10(d) + frequency * log10(GHZ)


inf_los, inf_sl = factory(31.84, 21.5, 19), factory(33, 25.5)
LOSS = {  # line of sight, and without; the latter is never less
    "umi": (umi_los, lambda d: 35.3 * log10(d) + 22.4 + 21.3 * log10(GHZ) - 0.3 * (UE_M - 1.5)),
    "uma": (uma_los, lambda d: 13.54 + 39.08 * log10(d) + 20 * log10(GHZ) - 0.6 * (UE_M - 1.5)),
    "rma": (rma_los, rma_nlos),
    "inh": (factory(32.4, 17.3), lambda d: 38.3 * log10(d) + 17.3 + 24.9 * log10(GHZ)),
    "sl": (inf_los, inf_sl),
    "dl": (inf_los, lambda d: max(inf_sl(d), 18.6 + 35.7 * log10(d) + 20 * log10(GHZ))),
    "sh": (inf_los, factory(32.4, 23)),
    "dh": (inf_los, factory(33.63, 21.9)),
}
AT_10_30_100_M = {  # figures worked out elsewhere, of line of sight and without
    "umi": ((64.28, 74.30, 85.28), (69.29, 86.13, 104.59)),
    "uma": ((60.88, 71.38, 82.88), (63.50, 82.15, 102.58)),
    "inh": ((60.58, 68.84, 77.88), (69.15, 87.42, 107.45)),
    "sl": ((63.68, 73.94, 85.18), (69.38, 81.55, 94.88)),
    "dl": ((63.68, 73.94, 85.18), (69.38, 82.21, 100.88)),
    "sh": ((63.68, 73.94, 85.18), (66.28, 77.26, 89.28)),
    "dh": ((63.68, 73.94, 85.18), (66.41, 76.86, 88.31)),
}


@pytest.mark.parametrize("scenario", AT_10_30_100_M)
def test_the_formulas_give_the_known_figures(scenario):
    """At a distance from antenna to antenna, whatever the heights."""
    for sight in (0, 1):
        for d, loss_db in zip((10, 30, 100), AT_10_30_100_M[scenario][sight], strict=True):
            with np.errstate(invalid="ignore"):  # 10 m from a mast of 25 m: no place, but a figure
                found = [LOSS[scenario][way](d) for way in range(sight + 1)]
            assert (max(found) if scenario in ("umi", "uma") else found[-1]) == pytest.approx(loss_db, abs=0.006)


@pytest.mark.skipif(find_spec("sionna") is None, reason="asks Sionna for its path loss")
@pytest.mark.parametrize("sight", [True, False])
@pytest.mark.parametrize("scenario", LOSS)
def test_the_generator_takes_the_formulas(scenario, sight):
    import torch
    from sionna.phy.channel.tr38901 import InF, InH, PanelArray, RMa, UMa, UMi

    arrays = {
        f"{end}_array": PanelArray(1, 1, "single", "V", "omni", GHZ * 1e9) for end in ("ut", "bs")
    } | {"direction": "downlink"}  # fmt: skip
    outdoor = {"umi": UMi, "uma": UMa, "rma": RMa}
    if scenario in outdoor:
        low = {} if scenario == "rma" else {"o2i_model": "low"}
        model = outdoor[scenario](GHZ * 1e9, **low, **arrays)
    else:
        kind = {} if scenario == "inh" else {"factory_scenario": scenario.upper()}
        model = (InH if scenario == "inh" else InF)(GHZ * 1e9, **kind, **arrays)
    flat_m = np.array([15.0, 40.0, 90.0] if scenario not in outdoor else [40.0, 120.0, 190.0, 400.0, 3000.0])
    ues, zero = len(flat_m), torch.zeros(1, len(flat_m), 3)
    place = torch.tensor(np.stack([flat_m, 0 * flat_m, 0 * flat_m + UE_M], -1)[None], dtype=torch.float32)
    model.set_topology(
        place, torch.tensor([[[0, 0, GNB_M[scenario]]]]), zero, torch.zeros(1, 1, 3), zero,
        torch.full((1, ues), scenario not in outdoor), los=sight,
    )  # fmt: skip
    found = model._scenario.basic_pathloss.reshape(-1).numpy()
    for d, loss_db in zip(np.hypot(flat_m, GNB_M[scenario] - UE_M), found, strict=True):
        los, nlos = (formula(d) for formula in LOSS[scenario])
        assert loss_db == pytest.approx(los if sight else max(los, nlos), abs=0.01)


@pytest.mark.parametrize("scenario", LOSS)
def test_the_map_for_devices_that_walk_takes_the_formulas(scenario):
    """From antenna to antenna over 15 m to 3 km on the ground; without sight, never less than with it."""
    name = scenario if scenario in ("umi", "uma", "rma", "inh") else f"inf-{scenario}"
    distance_m = np.hypot([15.0, 40.0, 90.0, 400.0, 3000.0], GNB_M[scenario] - UE_M)
    found = path_loss.path_loss_db(name, distance_m, GNB_M[scenario], GHZ)
    for d, los_db, nlos_db in zip(distance_m, *found, strict=True):
        los, nlos = (formula(d) for formula in LOSS[scenario])
        assert (los_db, nlos_db) == pytest.approx((los, max(los, nlos)), abs=0.001)
