"""How well 57 cells cover the ground when all send at once, against 3GPP's calibration of TR 38.901 (R1-165974).

Geometry is the power of the serving cell over that of all others, without noise. The reference is the median of all
companies' curves at 6 GHz, as QuaDRiGa's tutorials carry it (calib_3GPP_ref_data.m, Fraunhofer HHI). The antenna is the
same: a column of 10 elements, half a wavelength apart, tilted by 12 degrees. Not the same: devices stand at 1.5 m
(there 80 % are indoors, up to the 8th floor), and shadowing is that of the map on which devices walk.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from airserve.network import association, mobility, path_loss, radio
from airserve.network.lattice import SITE_DISTANCE_M
from airserve.network.topology import Network

PERCENTILES = np.arange(5, 100, 5)
REFERENCE_DB = {  # at these, of UMi and UMa
    "umi": [-1.7, -0.5, 0.4, 1.2, 2.1, 3, 4, 5, 6.1, 7.3, 8.6, 9.9, 11.4, 13, 14.9, 17, 19.4, 22.1, 24.9],
    "uma": [-1, 0.1, 1.1, 2, 2.9, 3.9, 5, 6, 7.2, 8.6, 9.9, 11.3, 12.9, 14.7, 16.5, 18.6, 20.9, 23.4, 25.6],
}
LEAST_M = {"umi": 10.0, "uma": 35.0}
ELEMENTS, TILT = 10, np.radians(12)


def column_db(below: np.ndarray) -> np.ndarray:
    """Gain of the column over one element, at angles below the horizon."""
    phase = np.pi * np.arange(ELEMENTS) * (np.sin(below[..., None]) - np.sin(TILT))
    return 20 * np.log10(np.maximum(np.abs(np.exp(1j * phase).sum(axis=-1)), 1e-3)) - 10 * np.log10(ELEMENTS)


def geometry_db(scenario: str, points: int, seed: int, column: bool) -> np.ndarray:
    """At places drawn evenly round the site in the middle, as far as half the distance to the next."""
    one = {"name": "city", "scenario": scenario, "trps": 57}
    sites = [{"name": "mast", "kind": "edge"}]
    city = Network.model_validate({"cells": [one], "slices": [{"name": "all"}], "sites": sites})
    rng = np.random.default_rng(seed)
    there = association.stood(city, radio.load(city.cell), 1, rng)
    # there is no trace at 6 GHz, and none is needed: only the map is made for it
    land = mobility.ground(city.cell.model_copy(update={"carrier_ghz": 6.0}), there, rng)
    reach_m, mast_m = SITE_DISTANCE_M[scenario], path_loss.MAST_M[scenario]
    place_m = rng.uniform(-reach_m / 2, reach_m / 2, (4 * points, 2))
    place_m = place_m[np.hypot(*place_m.T) > LEAST_M[scenario]][:points]
    walk = mobility.Walk(place_m, 0 * place_m, land)
    loss_db = mobility.losses_db(walk)
    if column:
        away = place_m[:, None] - there.cell_position_m[None]
        images = reach_m * mobility.Hexagons(57).images
        flat_m = np.hypot(*np.moveaxis(away[:, :, None] - images, -1, 0)).min(axis=-1)
        loss_db -= column_db(np.arctan2(mast_m - path_loss.UE_HEIGHT_M, flat_m))
    power = 10 ** (-loss_db / 10)
    best = power.max(axis=1)
    found: np.ndarray = 10 * np.log10(best / (power.sum(axis=1) - best))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000, help="of each map")
    parser.add_argument("--maps", type=int, default=5)
    args = parser.parse_args()
    table = Table("geometry, dB", *(f"{q} %" for q in PERCENTILES[::3]), "largest difference")
    for scenario, reference in REFERENCE_DB.items():
        table.add_row(f"{scenario}, R1-165974", *(f"{db:.1f}" for db in reference[::3]), "")
        for name, column in (("column of 10, tilted", True), ("one element, as the map has it", False)):
            found = [geometry_db(scenario, args.points, seed, column) for seed in range(args.maps)]
            db = np.percentile(np.concatenate(found), PERCENTILES)
            apart = np.abs(db - reference).max()
            table.add_row(f"{scenario}, {name}", *(f"{x:.1f}" for x in db[::3]), f"{apart:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
