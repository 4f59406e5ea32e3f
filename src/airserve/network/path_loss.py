"""Path loss, line of sight and antenna pattern by closed form: TR 38.901 Tables 7.4.1-1, 7.4.2-1 and 7.3-1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airserve.model import Array

LIGHT_MS = 3e8
UE_HEIGHT_M = 1.5
MAST_M = {"umi": 10.0, "uma": 25.0, "rma": 35.0}
BUILDING_M, STREET_M = 5.0, 20.0  # of RMa: average height and width
ELEMENT_DBI, FRONT_TO_BACK_DB, BEAMWIDTH = 8.0, 30.0, np.radians(65)


@dataclass(frozen=True)
class Shadow:
    """Table 7.5-6: deviation in dB and correlation distance in m, with line of sight and without; 7.6.3.1-2."""

    los_db: float
    nlos_db: float
    los_m: float
    nlos_m: float
    sight_m: float  # correlation distance of line of sight itself


SHADOW = {
    "umi": Shadow(4.0, 7.82, 10, 13, 50), "uma": Shadow(4.0, 6.0, 37, 50, 50), "rma": Shadow(4.0, 8.0, 37, 120, 60),
    "inh": Shadow(3.0, 8.03, 10, 6, 10), "inf-sl": Shadow(4.3, 5.7, 10, 10, 5), "inf-dl": Shadow(4.3, 7.2, 10, 10, 1),
    "inf-sh": Shadow(4.3, 5.9, 10, 10, 5), "inf-dh": Shadow(4.3, 4.0, 10, 10, 1),
}  # fmt: skip
# Table 7.2-4: density, size and height of clutter
CLUTTER = {"inf-sl": (0.2, 10, 2), "inf-dl": (0.6, 2, 6), "inf-sh": (0.2, 10, 2), "inf-dh": (0.6, 2, 6)}


def path_loss_db(scenario: str, distance_m: Array, mast_m: float, ghz: float) -> tuple[Array, Array]:
    """Loss in dB with line of sight and without, of any shape, over distances from antenna to antenna.

    >>> [round(float(one), 2) for one in path_loss_db("umi", np.array(100.0), 10.0, 3.5)]
    [85.28, 104.59]
    """
    d = np.maximum(distance_m, 1.0)
    lg, f = np.log10(d), np.log10(ghz)
    match scenario:
        case "umi":
            los = _street(d, mast_m, ghz, 32.4, 21.0, 9.5)
            nlos = 35.3 * lg + 22.4 + 21.3 * f - 0.3 * (UE_HEIGHT_M - 1.5)
        case "uma":
            los = _street(d, mast_m, ghz, 28.0, 22.0, 9.0)
            nlos = 13.54 + 39.08 * lg + 20 * f - 0.6 * (UE_HEIGHT_M - 1.5)
        case "rma":
            los, nlos = _field(d, mast_m, ghz), (
                161.04 - 7.1 * np.log10(STREET_M) + 7.5 * np.log10(BUILDING_M)
                - (24.37 - 3.7 * (BUILDING_M / mast_m) ** 2) * np.log10(mast_m)
                + (43.42 - 3.1 * np.log10(mast_m)) * (lg - 3) + 20 * f
                - (3.2 * np.log10(11.75 * UE_HEIGHT_M) ** 2 - 4.97)
            )  # fmt: skip
        case "inh":
            los, nlos = 32.4 + 17.3 * lg + 20 * f, 38.3 * lg + 17.3 + 24.9 * f
        case _:
            los, sparse = 31.84 + 21.5 * lg + 19 * f, 33 + 25.5 * lg + 20 * f
            nlos = {
                "inf-sl": sparse,
                "inf-dl": np.maximum(sparse, 18.6 + 35.7 * lg + 20 * f),
                "inf-sh": 32.4 + 23 * lg + 20 * f,
                "inf-dh": 33.63 + 21.9 * lg + 20 * f,
            }[scenario]
    return los, np.maximum(los, nlos)


def sight_probability(scenario: str, flat_m: Array, mast_m: float) -> Array:
    """Of line of sight over a distance on the ground; a device at 1.5 m.

    >>> [round(float(sight_probability("umi", np.array(d), 10.0)), 3) for d in (10.0, 100.0)]
    [1.0, 0.231]
    """
    d = np.maximum(flat_m, 1e-3)
    match scenario:
        case "umi" | "uma":
            reach_m = 36.0 if scenario == "umi" else 63.0
            return np.where(d <= 18, 1.0, 18 / d + np.exp(-d / reach_m) * (1 - 18 / d))
        case "rma":
            return np.exp(-np.maximum(d - 10, 0) / 1000)
        case "inh":  # mixed office
            near, far = np.exp(-(d - 1.2) / 4.7), np.exp(-(d - 6.5) / 32.6) * 0.32
            return np.where(d <= 1.2, 1.0, np.where(d < 6.5, near, far))
    density, size_m, height_m = CLUTTER[scenario]
    reach_m = -size_m / np.log(1 - density)
    if scenario in ("inf-sh", "inf-dh"):
        reach_m *= (mast_m - UE_HEIGHT_M) / (height_m - UE_HEIGHT_M)
    return np.exp(-d / reach_m)


def element_dbi(azimuth: Array, elevation: Array) -> Array:
    """Gain of an antenna element at angles in radians off its boresight, Table 7.3-1.

    >>> [round(float(element_dbi(np.radians(a), np.array(0.0))), 2) for a in (0.0, 32.5, 180.0)]
    [8.0, 5.0, -22.0]
    """
    turned = (azimuth + np.pi) % (2 * np.pi) - np.pi
    across, along = (np.minimum(12 * (angle / BEAMWIDTH) ** 2, FRONT_TO_BACK_DB) for angle in (turned, elevation))
    return ELEMENT_DBI - np.minimum(across + along, FRONT_TO_BACK_DB)


def _street(d: Array, mast_m: float, ghz: float, constant: float, slope: float, factor: float) -> Array:
    break_m = 4 * (mast_m - 1) * (UE_HEIGHT_M - 1) * ghz * 1e9 / LIGHT_MS
    flat_m = np.sqrt(np.maximum(d**2 - (mast_m - UE_HEIGHT_M) ** 2, 0))
    lg, f = np.log10(d), 20 * np.log10(ghz)
    near = constant + slope * lg + f
    far = constant + 40 * lg + f - factor * np.log10(break_m**2 + (mast_m - UE_HEIGHT_M) ** 2)
    return np.where(flat_m <= break_m, near, far)


def _field(d: Array, mast_m: float, ghz: float) -> Array:
    def near(x: Array) -> Array:
        return (
            20 * np.log10(40 * np.pi * x * ghz / 3) + min(0.03 * BUILDING_M**1.72, 10) * np.log10(x)
            - min(0.044 * BUILDING_M**1.72, 14.77) + 0.002 * np.log10(BUILDING_M) * x
        )  # fmt: skip

    break_m = 2 * np.pi * mast_m * UE_HEIGHT_M * ghz * 1e9 / LIGHT_MS
    far = near(np.asarray(break_m)) + 40 * np.log10(np.maximum(d, break_m) / break_m)
    return np.where(d <= break_m, near(d), far)
