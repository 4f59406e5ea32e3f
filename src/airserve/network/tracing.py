"""Radio traces from TR 38.901 channels, made offline with Sionna (extra `radio`): one base station, no neighbours.

What is modelled: path loss, shadowing and fading of TR 38.901; per RBG of 16 PRBs a downlink precoder from an
uplink sounding that is 20 ms old and noisy (TDD reciprocity), the wideband codebook of TS 38.211 6.3.1.5 in the
uplink, MMSE receivers that know their channel. Effective SNR over RBGs and layers is by mutual information (RBIR,
IEEE 802.16m evaluation methodology 4.3.2). What is not: interference, moving scatterers, errors of calibration.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from airserve.model import Array
from airserve.network.link import EVM
from airserve.network.radio import Trace, TraceError, file_name, trace_folder
from airserve.network.topology import Cell

UE_POWER_DBM = 23.0  # power class 3, TS 38.101-1 6.2.1
UE_NOISE_FIGURE_DB, GNB_NOISE_FIGURE_DB = 9.0, 5.0  # TR 38.901 Table 7.8-1, TR 38.802 Table A.2.1-1
NOISE_DBM_PER_HZ = -174.0
RBG_PRBS = 16  # TS 38.214 Table 5.1.2.2.1-1, configuration 1, above 144 PRBs
LAYERS_DOWN = 4
SOUNDING_AGE_S = 0.02  # a period of sounding: what a precoder rests on
# SRS, TS 38.211 6.4.1.4: comb 4 has the power of a symbol in a quarter of its elements; 12 of them, those of 4 PRBs
# (1.4 MHz), are averaged
SOUNDING_GAIN = 4 * 12
CHANNELS_AT_ONCE = 100_000  # antenna pairs times snapshots times UEs: about 1.5 GB

# TS 38.211 Tables 6.3.1.5-1 and 6.3.1.5-4: a device of two coherent antennas, one and two layers
CODEBOOK_1 = np.array([[1, 0], [0, 1], [1, 1], [1, -1], [1, 1j], [1, -1j]])[:, :, None] / np.sqrt(2)
CODEBOOK_2 = np.array([np.sqrt(2) * np.eye(2), [[1, 1], [1, -1]], [[1, 1], [1j, -1j]]]) / 2


@dataclass(frozen=True)
class Hall:
    """A factory hall (TR 38.901 Table 7.8-7) or office floor (Table 7.8-1).

    Its one base station is at the middle of a short wall and looks at the middle of the floor.
    """

    length_m: float
    width_m: float
    gnb_height_m: float
    ue_height_m: float = 1.5


HALLS = {
    "inf-sl": Hall(120, 60, 1.5),
    "inf-dh": Hall(120, 60, 8.0),
    "inf-dl": Hall(300, 150, 1.5),
    "inf-sh": Hall(300, 150, 8.0),
    "inh": Hall(120, 50, 3.0, ue_height_m=1.0),
}
# TR 38.901 Table 7.8-1, below 6 GHz; InF as InH, and RMa as in ITU-R M.2412 Table 8-4
GNB_POWER_DBM = {**dict.fromkeys(HALLS, 24.0), "umi": 44.0, "uma": 49.0, "rma": 49.0}


def make(
    scenario: str,
    *,
    cell: Cell,
    ues: int = 50,
    snapshots: int = 100,
    snapshot_s: float = 0.01,
    speed_ms: float = 0.83,
    seed: int = 0,
    csi: Literal["sounded", "ideal"] = "sounded",
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """The radio of UEs dropped at random in a cell; `progress(done, ues)` is called as UEs are done.

    A UE keeps its path loss and shadowing and moves through its fading at `speed_ms` metres per second. `csi`:
    the downlink precoder from a sounding 20 ms old and noisy, or (to see the loss) from the channel itself.
    Shadowing is correlated only among the few UEs that are made at once. Sets Sionna's global seed.

    Raises `TraceError` when Sionna is missing or the scenario or an antenna number is not supported.
    """
    try:
        import torch
        from sionna.phy import config
        from sionna.phy.channel import cir_to_ofdm_channel
    except ImportError as error:
        raise TraceError(
            f"radio traces are made with Sionna, and {error.name} is missing; pip install 'airserve[radio]'."
        ) from None
    if scenario not in GNB_POWER_DBM:
        raise TraceError(f"no traces can be made of scenario {scenario!r}; choose {', '.join(GNB_POWER_DBM)}.")
    config.seed = seed
    topology = _drop(scenario, cell.carrier_ghz * 1e9, ues, speed_ms, seed)
    subcarriers, scs_hz = cell.prbs * 12, cell.scs_khz * 1e3
    rbgs = -(-cell.prbs // RBG_PRBS)
    frequencies = torch.tensor((np.arange(rbgs) - (rbgs - 1) / 2) * RBG_PRBS * 12 * scs_hz, dtype=torch.float32)
    down_gain, up_gain = (
        10 ** ((power_dbm - NOISE_DBM_PER_HZ - figure_db - 10 * np.log10(subcarriers * scs_hz)) / 10)
        for power_dbm, figure_db in (
            (GNB_POWER_DBM[scenario], UE_NOISE_FIGURE_DB),
            (UE_POWER_DBM, GNB_NOISE_FIGURE_DB),
        )
    )
    rng = np.random.default_rng([seed, 1])
    age = max(1, round(SOUNDING_AGE_S / snapshot_s))  # in snapshots
    step = max(1, CHANNELS_AT_ONCE // (cell.gnb_ports * cell.ue_antennas * (snapshots + age)))
    down, up = [], []
    with torch.no_grad():
        for first in range(0, ues, step):
            some = slice(first, min(ues, first + step))
            model, sending = _channel(scenario, cell)
            model.set_topology(**{key: value[:, some] if key in PER_UE else value for key, value in topology.items()})
            impulses, delays = model(snapshots + age, 1 / snapshot_s)
            response = cir_to_ofdm_channel(frequencies, impulses, delays)[0, :, :, 0]  # ue, ue ant, port, time, rbg
            h = response.permute(0, 3, 4, 1, 2).numpy().astype(np.complex128)
            old, now = h[:, :-age], h[:, age:]
            known = now if csi == "ideal" else _sounded(old, up_gain * SOUNDING_GAIN, rng)
            down.append(_downlink_db(now, known, down_gain))
            up.append(_uplink_db(now[..., sending, :], old[..., sending, :], up_gain))
            if progress:
                progress(some.stop, ues)
    made_by = {
        "carrier_ghz": cell.carrier_ghz, "bandwidth_mhz": cell.bandwidth_mhz, "scs_khz": cell.scs_khz,
        "gnb_ports": cell.gnb_ports, "ue_antennas": cell.ue_antennas, "speed_ms": speed_ms, "seed": seed, "csi": csi,
        "gnb_power_dbm": GNB_POWER_DBM[scenario], "ue_power_dbm": UE_POWER_DBM,
        "gnb_noise_figure_db": GNB_NOISE_FIGURE_DB, "ue_noise_figure_db": UE_NOISE_FIGURE_DB,
        "gnb_position_m": topology["bs_loc"][0, 0].tolist(), "channel": "TR 38.901, one cell, no interference",
        "versions": {name: version(name) for name in ("airserve", "sionna-no-rt", "torch", "numpy")},
    }  # fmt: skip
    position_m = topology["ut_loc"][0].numpy().astype(np.float32)
    return Trace(scenario, snapshot_s, np.concatenate(down), np.concatenate(up), position_m, made_by)


def make_for(
    scenario: str,
    *,
    ues: int = 50,
    snapshots: int = 100,
    seed: int = 1,
    home: Path | None = None,
    **cell: Any,
) -> Path:
    """Make the trace of a scenario and keep it where `radio.load` finds it; the path of the file.

    `cell` sets other keys of the cell: carrier_ghz, bandwidth_mhz, scs_khz, gnb_ports, ue_antennas. Shows a
    progress bar on a terminal. Stopped before its end, it leaves no file.
    """
    try:
        described = Cell.model_validate({"name": "cell", "scenario": scenario, **cell})
    except ValidationError as error:
        first = error.errors()[0]
        raise TraceError(f"{'.'.join(map(str, first['loc'])) or 'cell'} {first['input']}: {first['msg']}.") from None
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"radio of {ues} UEs, {scenario}", total=ues)
        trace = make(
            scenario,
            cell=described,
            ues=ues,
            snapshots=snapshots,
            seed=seed,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    path = trace_folder(home) / file_name(described)
    save(trace, path)
    return path


def save(trace: Trace, path: Path) -> None:
    """Write a trace as `radio.read` reads it; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(
                file,
                scenario=np.array(trace.scenario),
                snapshot_s=np.array(trace.snapshot_s),
                snr_down_db=trace.snr_down_db,
                snr_up_db=trace.snr_up_db,
                position_m=trace.position_m,
                made_by=np.array(json.dumps(trace.made_by)),
            )
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


PER_UE = {"ut_loc", "ut_orientations", "ut_velocities", "in_state"}


def _drop(scenario: str, carrier_hz: float, ues: int, speed_ms: float, seed: int) -> dict[str, Any]:
    """Where base station and UEs are, as Sionna's `set_topology` takes it: tensors of shape (1, ue or 1, ...)."""
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

        drop = gen_tr38901_multicell_topology(scenario, 1, ues, carrier_hz, num_rings=0)  # 3 sectors: keep the first
        place, gnb, boresight = drop[0][0, :ues].numpy(), drop[1][0, :1].numpy(), drop[3][0, :1].numpy()
        indoor = drop[5][0, :ues].numpy()

    def tensor(array: Array) -> Any:
        return torch.tensor(array[None], dtype=torch.bool if array.dtype == bool else torch.float32)

    return {
        "ut_loc": tensor(place), "bs_loc": tensor(gnb), "ut_orientations": tensor(turned),
        "bs_orientations": tensor(boresight), "ut_velocities": tensor(velocity), "in_state": tensor(indoor),
        "los": "random",
    }  # fmt: skip


def _channel(scenario: str, cell: Cell) -> tuple[Any, list[int]]:
    """Sionna's channel model of a scenario, and the UE antennas that send: one of each polarization."""
    from sionna.phy.channel.tr38901 import InF, InH, PanelArray, RMa, UMa, UMi

    def array(antennas: int, rows: int, **pattern: str) -> Any:
        if antennas > 1 and antennas % 2:
            raise TraceError(f"an array of {antennas} antennas is not supported; give 1 or an even number.")
        return PanelArray(
            num_rows_per_panel=rows,
            num_cols_per_panel=max(1, antennas // 2) // rows,
            polarization="single" if antennas == 1 else "dual",
            carrier_frequency=cell.carrier_ghz * 1e9,
            **pattern,
        )

    pairs = max(1, cell.gnb_ports // 2)
    rows = max(n for n in range(1, int(np.sqrt(pairs)) + 1) if pairs % n == 0)
    crossed, upright = ("V", "V") if cell.gnb_ports == 1 else ("cross", "VH")
    gnb = array(cell.gnb_ports, rows, polarization_type=crossed, antenna_pattern="38.901")
    ue = array(cell.ue_antennas, 1, polarization_type="V" if cell.ue_antennas == 1 else upright, antenna_pattern="omni")
    sending = [0] if cell.ue_antennas == 1 else [int(ue.ant_ind_pol1[0]), int(ue.ant_ind_pol2[0])]
    carrier_hz = cell.carrier_ghz * 1e9
    ends: dict[str, Any] = {"ut_array": ue, "bs_array": gnb, "direction": "downlink"}
    match scenario:
        case "umi" | "uma":
            model = {"umi": UMi, "uma": UMa}[scenario](carrier_hz, "low", **ends)
        case "rma":
            model = RMa(carrier_hz, **ends)
        case "inh":
            model = InH(carrier_hz, **ends)
        case _:
            model = InF(carrier_hz, **ends, factory_scenario=scenario.removeprefix("inf-").upper())
    return model, sending


def _sounded(h: Array, gain: float, rng: np.random.Generator) -> Array:
    """A channel as a sounding of some SNR per unit of channel gain sees it."""
    noise = rng.standard_normal((2, *h.shape)) * np.sqrt(0.5 / gain)
    return h + noise[0] + 1j * noise[1]


def _downlink_db(h: Array, known: Array, gain: float) -> Array:
    """SNR in dB of 1 to 4 layers, int8 (ue, snapshot, layers), of channels h (ue, snapshot, rbg, ue ant, port).

    The strongest directions of the channel as it is `known` get equal power; `gain` is transmit over noise power.
    """
    # Right singular vectors by the small Gram matrix: 4x4 in place of 4x32.
    _, left = np.linalg.eigh(known @ _h(known))
    directions = _h(known) @ left[..., ::-1]
    directions /= np.maximum(np.linalg.norm(directions, axis=-2, keepdims=True), 1e-30)  # a missing path stays zero
    most = min(LAYERS_DOWN, *h.shape[-2:])
    seen = h @ directions[..., :most]
    return np.stack([_effective_db(_mmse_snr(seen[..., :r], gain / r)) for r in range(1, most + 1)], -1)


def _uplink_db(h: Array, known: Array, gain: float) -> Array:
    """SNR in dB of 1 or 2 layers, int8 (ue, snapshot, layers), of channels h (ue, snapshot, rbg, ue ant, port).

    One wideband precoder of the codebook: the best for the channel as it is `known`.
    """
    h, known = np.swapaxes(h, -1, -2), np.swapaxes(known, -1, -2)
    if h.shape[-1] == 1:
        return _effective_db(_mmse_snr(h, gain))[..., None]
    layers = []
    for codebook in (CODEBOOK_1, CODEBOOK_2):
        promised = [np.log2(1 + _mmse_snr(known @ entry, gain)).sum(axis=(-1, -2)) for entry in codebook]
        precoder = codebook[np.argmax(promised, axis=0)][:, :, None]  # ue, snapshot, 1, ue ant, layer
        layers.append(_effective_db(_mmse_snr(h @ precoder, gain)))
    return np.stack(layers, -1)


def _mmse_snr(h: Array, gain: float) -> Array:
    """SINR (..., layers) behind an MMSE receiver of channels (..., receive antennas, layers)."""
    covariance = np.eye(h.shape[-1]) + gain * (_h(h) @ h)
    return 1 / np.diagonal(np.linalg.inv(covariance), axis1=-2, axis2=-1).real.clip(1e-12, 1) - 1


def _effective_db(snr: Array) -> Array:
    """SNR of the flat channel of the same mutual information, int8 dB (ue, snapshot), of (ue, snapshot, rbg, layer).

    EVM is put in before the mean, for it limits how far a strong layer can make up for a weak one, and taken out after.
    """
    sinr_db = 10 * np.log10(1 / (1 / np.maximum(snr, 1e-9) + EVM**2))
    mean = np.interp(sinr_db, GRID_DB, INFORMATION).mean(axis=(-1, -2))
    flat = 10 ** (-np.interp(mean, INFORMATION, GRID_DB) / 10) - EVM**2
    return np.clip(np.rint(-10 * np.log10(np.maximum(flat, 1e-6))), -40, 60).astype(np.int8)


def _information(snr_db: Array) -> Array:
    """Mutual information of 256QAM in AWGN in bits a symbol: two 16-PAM, integrated by Gauss-Hermite."""
    points = np.arange(-15, 16, 2) / np.sqrt(170)  # unit energy over both parts
    nodes, weights = np.polynomial.hermite.hermgauss(24)
    sigma = np.sqrt(0.5 * 10 ** (-snr_db / 10))[:, None, None, None]
    noise = np.sqrt(2) * sigma * nodes  # snr, 1, 1, node
    apart = (points[:, None] - points)[None, :, :, None]
    exponent = (noise**2 - (apart + noise) ** 2) / (2 * sigma**2)
    lost = np.log2(np.exp(exponent).sum(axis=2)) @ weights / np.sqrt(np.pi)  # snr, point
    return 2 * (4 - lost.mean(axis=1))


def _h(matrix: Array) -> Array:
    return np.swapaxes(matrix, -1, -2).conj()


GRID_DB = np.arange(-40, 30, 0.1)
INFORMATION = _information(GRID_DB)
