"""Radio traces from TR 38.901 channels, made offline with Sionna (extra `radio`), for one base station.

The SNR is without neighbours; the coupling loss to these is stored beside it. What is modelled: path loss, shadowing
and fading of TR 38.901; per RBG of 16 PRBs a downlink precoder from an uplink sounding that is 20 ms old and noisy
(TDD reciprocity), the wideband codebook of TS 38.211 6.3.1.5 in the uplink, MMSE receivers that know their channel.
Effective SNR over RBGs and layers is by mutual information (RBIR, IEEE 802.16m evaluation methodology 4.3.2). What is
not: moving scatterers, errors of calibration.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from airserve.model import Array
from airserve.network.cell import Cell
from airserve.network.coupling import cell_gains, coupling_loss_db
from airserve.network.lattice import HALLS, cells
from airserve.network.layout import drop
from airserve.network.link import EVM
from airserve.network.parts import Part
from airserve.network.radio import ARRAYS, Trace, TraceError, file_name, trace_folder
from airserve.progress import bar

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
    part: Path | None = None,
) -> Trace:
    """The radio of UEs dropped at random in a cell; `progress(done, ues)` is called as UEs are done.

    A UE keeps its path loss and shadowing and moves through its fading at `speed_ms` metres per second. `csi`:
    the downlink precoder from a sounding 20 ms old and noisy, or (to see the loss) from the channel itself.
    Shadowing is correlated only among the few UEs that are made at once. Sets Sionna's global seed. `part`: a file
    that keeps what is done; a run with the same arguments goes on from it to the same trace, and removes it.

    Raises `TraceError` when Sionna is missing or the scenario or an antenna number is not supported.
    """
    try:
        import torch
        from sionna.phy import config
    except ImportError as error:
        raise TraceError(
            f"radio traces are made with Sionna, and {error.name} is missing; pip install 'airserve[radio]'."
        ) from None
    if scenario not in GNB_POWER_DBM:
        raise TraceError(f"no traces can be made of scenario {scenario!r}; choose {', '.join(GNB_POWER_DBM)}.")
    config.seed = seed
    topology = drop(scenario, cell.carrier_ghz * 1e9, ues, speed_ms, seed)
    down_gain, up_gain = power_over_noise(scenario, cell)
    made_by = {
        "carrier_ghz": cell.carrier_ghz, "bandwidth_mhz": cell.bandwidth_mhz, "scs_khz": cell.scs_khz,
        "gnb_ports": cell.gnb_ports, "ue_antennas": cell.ue_antennas, "speed_ms": speed_ms, "seed": seed, "csi": csi,
        "gnb_power_dbm": GNB_POWER_DBM[scenario], "ue_power_dbm": UE_POWER_DBM,
        "gnb_noise_figure_db": GNB_NOISE_FIGURE_DB, "ue_noise_figure_db": UE_NOISE_FIGURE_DB,
        "gnb_position_m": topology["bs_loc"][0, 0].tolist(), "channel": "TR 38.901, interference left to the user",
        "versions": {name: version(name) for name in ("airserve", "sionna-no-rt", "torch", "numpy")},
    }  # fmt: skip
    rng = np.random.default_rng([seed, 1])
    age = max(1, round(SOUNDING_AGE_S / snapshot_s))  # in snapshots
    step = max(1, CHANNELS_AT_ONCE // (cell.gnb_ports * cell.ue_antennas * (snapshots + age)))
    done = Part(part, json.dumps([scenario, ues, snapshots, snapshot_s, made_by]), rng)
    with torch.no_grad():
        for first in range(len(done), ues, step):
            some = slice(first, min(ues, first + step))
            model, sending = _channel(scenario, cell)
            h = responses(
                model,
                cell,
                {k: v[:, some] if k in PER_UE else v for k, v in topology.items()},
                snapshots + age,
                snapshot_s,
            )
            old, now = h[:, :-age], h[:, age:]
            known = now if csi == "ideal" else _sounded(old, up_gain * SOUNDING_GAIN, rng)
            done.add(
                snr_down_db=_downlink_db(now, known, down_gain),
                snr_up_db=_uplink_db(now[..., sending, :], old[..., sending, :], up_gain),
                csi_error_db=_csi_error_db(now, known),
                gain=(np.abs(now) ** 2).mean(axis=(2, 3, 4)),
                outdoor_los=model._scenario.outdoor_los[0, 0].numpy(),
                indoor_m=model._scenario.distance_2d_in[0, 0].numpy(),
                **_directions(now, down_gain),
                **_fewer(now, old, known, sending, down_gain, up_gain),
            )
            if progress:
                progress(some.stop, ues)
        found = done.rows
        gains = cell_gains(
            scenario, lambda pattern: _channel(scenario, cell, pattern)[0], topology, found.pop("gain"),
            outdoor_los=found.pop("outdoor_los"), indoor_m=found.pop("indoor_m"), snapshot_s=snapshot_s, seed=seed,
        )  # fmt: skip
    places, _ = cells(scenario, topology["bs_loc"][0, 0].numpy(), topology["bs_orientations"][0, 0].numpy())
    done.close()
    return Trace(
        scenario, snapshot_s,
        position_m=topology["ut_loc"][0].numpy().astype(np.float32), made_by=made_by,
        coupling_loss_db=coupling_loss_db(gains), cell_position_m=places.astype(np.float32), **found,
    )  # fmt: skip


def power_over_noise(scenario: str, cell: Cell) -> tuple[float, float]:
    """Transmit power over noise on the whole carrier, linear: down and up."""
    bandwidth_db = 10 * np.log10(cell.prbs * 12 * cell.scs_khz * 1e3)
    down_dbm, up_dbm = GNB_POWER_DBM[scenario] - UE_NOISE_FIGURE_DB, UE_POWER_DBM - GNB_NOISE_FIGURE_DB
    down, up = (10 ** ((dbm - NOISE_DBM_PER_HZ - bandwidth_db) / 10) for dbm in (down_dbm, up_dbm))
    return down, up


def responses(model: Any, cell: Cell, topology: dict[str, Any], snapshots: int, snapshot_s: float) -> Array:
    """Downlink channels of the UEs of a topology, complex128 (ue, snapshot, rbg, ue antenna, port).

    `model` is Sionna's; one subcarrier in the middle of each RBG stands for it.
    """
    import torch
    from sionna.phy.channel import cir_to_ofdm_channel

    rbgs = -(-cell.prbs // RBG_PRBS)
    apart_hz = RBG_PRBS * 12 * cell.scs_khz * 1e3
    frequencies = torch.tensor((np.arange(rbgs) - (rbgs - 1) / 2) * apart_hz, dtype=torch.float32)
    model.set_topology(**topology)
    impulses, delays = model(snapshots, 1 / snapshot_s)
    response = cir_to_ofdm_channel(frequencies, impulses, delays)[0, :, :, 0]  # ue, ue antenna, port, time, rbg
    return np.asarray(response.permute(0, 3, 4, 1, 2).numpy().astype(np.complex128))


def make_for(
    scenario: str,
    *,
    ues: int = 50,
    snapshots: int = 100,
    snapshot_s: float = 0.01,
    speed_ms: float = 0.83,
    seed: int = 1,
    home: Path | None = None,
    **cell: Any,
) -> Path:
    """Make the trace of a scenario and keep it where `radio.load` finds it; the path of the file.

    `cell` sets other keys of the cell: carrier_ghz, bandwidth_mhz, scs_khz, gnb_ports, ue_antennas. Shows a
    progress bar on a terminal. Stopped before its end, it goes on from there when it is called again.
    """
    try:
        described = Cell.model_validate({"name": "cell", "scenario": scenario, **cell})
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} {first['input']}: " if first["loc"] else ""
        raise TraceError(f"{what}{first['msg'].removeprefix('Value error, ')}.") from None
    path = trace_folder(home) / file_name(described)
    with bar(f"radio of {ues} UEs, {scenario}", ues) as done:
        trace = make(
            scenario,
            cell=described,
            ues=ues,
            snapshots=snapshots,
            snapshot_s=snapshot_s,
            speed_ms=speed_ms,
            seed=seed,
            progress=done.to,
            part=path.with_suffix(".part"),
        )
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
                made_by=np.array(json.dumps(trace.made_by)),
                **{name: array for name in ARRAYS if (array := getattr(trace, name)) is not None},
            )
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


PER_UE = {"ut_loc", "ut_orientations", "ut_velocities", "in_state"}


def _channel(scenario: str, cell: Cell, single: str = "") -> tuple[Any, list[int]]:
    """Sionna's channel model of a scenario, and the UE antennas that send: one of each polarization.

    `single`: one element of that pattern in each polarization at the base station, and two antennas at the UE.
    """
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

    ports, antennas = (2, 2) if single else (cell.gnb_ports, cell.ue_antennas)
    pairs = max(1, ports // 2)
    rows = max(n for n in range(1, int(np.sqrt(pairs)) + 1) if pairs % n == 0)
    crossed, upright = ("V", "V") if ports == 1 else ("cross", "VH")
    gnb = array(ports, rows, polarization_type=crossed, antenna_pattern=single or "38.901")
    ue = array(antennas, 1, polarization_type="V" if antennas == 1 else upright, antenna_pattern="omni")
    sending = [0] if antennas == 1 else [int(ue.ant_ind_pol1[0]), int(ue.ant_ind_pol2[0])]
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


def _directions(h: Array, gain: float) -> dict[str, Array]:
    """The two transmit directions of most power, over the band, of channels (ue, snapshot, rbg, ue ant, port).

    `direction`: int8 (ue, snapshot, 2, port, 2), parts of unit vectors in steps of a 127th of their largest;
    `snr_direction_db`: int8 (ue, snapshot, 2), when all power goes that way and all UE antennas listen; and
    `snr_all_db`: int8 (ue, snapshot), the sum of that over all directions.
    """
    flat = h.reshape(*h.shape[:2], -1, h.shape[-1])
    power, vectors = np.linalg.eigh(_h(flat) @ flat / h.shape[2])
    all_power, power, vectors = (
        power.sum(-1),
        power[..., :-3:-1],
        np.swapaxes(vectors[..., :-3:-1], -1, -2),
    )  # the strongest first
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(-1)[..., None], -1)
    vectors = vectors * largest.conj() / np.abs(largest) ** 2  # its largest entry is 1: a phase says nothing
    parts = np.stack([vectors.real, vectors.imag], -1)
    return {
        "direction": np.rint(127 * parts).astype(np.int8),
        "snr_direction_db": _whole_db(gain * power, 80),
        "snr_all_db": _whole_db(gain * all_power, 80),
    }


def _fewer(
    now: Array, old: Array, known: Array, sending: list[int], down_gain: float, up_gain: float
) -> dict[str, Array]:
    """SNR of a device with fewer antennas at the same place: of the same channels, those of the antennas that it has.

    `snr_down_1_db` and `snr_down_2_db`: one that receives with one antenna, or one of each polarization;
    `snr_up_1_db`: that sends with one. As in `Trace`; nothing where the UE has one antenna anyway.
    """
    if len(sending) < 2:
        return {}
    one, two = sending[:1], sending[:2]
    return {
        "snr_down_1_db": _downlink_db(now[..., one, :], known[..., one, :], down_gain),
        "snr_down_2_db": _downlink_db(now[..., two, :], known[..., two, :], down_gain),
        "snr_up_1_db": _uplink_db(now[..., one, :], old[..., one, :], up_gain),
    }


def _csi_error_db(h: Array, known: Array) -> Array:
    """Part of the power of channels (ue, snapshot, rbg, ue ant, port) that is not along what is known of them.

    1 - correlation squared, the mean over the band, in int8 dB (ue, snapshot), at least -40: a phase that all antennas
    share is no error.
    """
    both = np.abs((h.conj() * known).sum(axis=(-1, -2))) ** 2
    powers = (np.abs(h) ** 2).sum(axis=(-1, -2)) * (np.abs(known) ** 2).sum(axis=(-1, -2))
    return _whole_db((1 - both / np.maximum(powers, 1e-300)).mean(axis=-1), 0)


def _whole_db(ratio: Array, most_db: int) -> Array:
    """Whole dB, int8, from -40 to a most."""
    return np.clip(np.rint(10 * np.log10(np.maximum(ratio, 1e-6))), -40, most_db).astype(np.int8)


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
