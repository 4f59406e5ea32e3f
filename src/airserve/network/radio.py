"""The radio of a cell over time: SNR traces made offline from TR 38.901 channels, and link adaptation on them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.random import Generator

from airserve.errors import UserError
from airserve.model import Array
from airserve.network.cell import Cell, resource_blocks
from airserve.network.link import EFFICIENCY, Direction, thresholds_db, with_evm_db

RANGE_DB = 30.0  # cells that are weaker than the best by more are left out of `coupling_loss_db`
OUT_OF_RANGE = 255


class TraceError(UserError, ValueError):
    """A radio trace that is missing or cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Trace:
    """The radio of UEs over time. The MAC loops it forth and back, so that no jump is made at its end.

    SNR is per layer, effective over the band, and without EVM (`link.with_evm_db` adds it). Uplink SNR is that of
    23 dBm spread over all PRBs of the carrier; `adaptation.sinr_db` makes of it that of a grant with power control.
    """

    scenario: str
    snapshot_s: float  # time from one snapshot to the next
    snr_down_db: Array  # int8 (ue, snapshot, 4): when 1 to 4 layers are sent
    snr_up_db: Array  # int8 (ue, snapshot, 2): when 1 or 2 layers are sent
    position_m: Array  # float32 (ue, 3)
    made_by: dict[str, Any]  # parameters, seed, versions
    # What older traces do not have is None:
    coupling_loss_db: Array | None = None  # uint8 (ue, snapshot, cell); the own cell first, 255: too weak to count
    cell_position_m: Array | None = None  # float32 (cell, 3)
    direction: Array | None = None  # int8 (ue, snapshot, 2, port, 2): real and imaginary part, see `directions`
    snr_direction_db: Array | None = None  # int8 (ue, snapshot, 2): when all power goes in one of them
    snr_all_db: Array | None = None  # int8 (ue, snapshot): the sum over all directions, as many as ports
    csi_error_db: Array | None = None  # int8 (ue, snapshot): part of the channel's power that its sounding has wrong
    # SNR as above of a device with fewer antennas at the same places, int8 (ue, snapshot, layers):
    snr_down_1_db: Array | None = None  # that receives with one antenna
    snr_down_2_db: Array | None = None  # with two
    snr_up_1_db: Array | None = None  # that sends with one

    @property
    def positions(self) -> int:
        """How many distinct UE positions it holds."""
        return len(self.position_m)

    @property
    def snapshots(self) -> int:
        return int(self.snr_down_db.shape[1])

    def directions(self) -> Array:
        """The two transmit directions of most power, strongest first: unit vectors, complex64 (ue, snapshot, 2, port).

        They are of the whole band and of the channel as it is; what a base station knows is as old as its sounding,
        so take those of an earlier snapshot for a precoder. Raises `TraceError` for a trace without them.

        >>> hall = load(Cell(name="hall")).directions()
        >>> bool(np.allclose(np.linalg.norm(hall, axis=-1), 1))
        True
        """
        if self.direction is None:
            raise TraceError(
                f"this trace of {self.scenario} has no transmit directions; make it again with `airserve traces`."
            )
        parts = self.direction.astype(np.float32)
        vectors = parts[..., 0] + 1j * parts[..., 1]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


ARRAYS = (
    "snr_down_db", "snr_up_db", "position_m", "coupling_loss_db", "cell_position_m", "direction", "snr_direction_db",
    "snr_all_db", "csi_error_db", "snr_down_1_db", "snr_down_2_db", "snr_up_1_db",
)  # fmt: skip
LATER = ARRAYS[3:]  # that traces made before did not have


def file_name(cell: Cell) -> str:
    """The file in which the trace of a cell is kept.

    >>> file_name(Cell(name="hall"))
    'inf-dh_3.5ghz_32x4_100mhz_30khz.npz'
    """
    return f"{_stem(cell)}_{cell.bandwidth_mhz}mhz_{cell.scs_khz}khz.npz"


def load(cell: Cell, home: Path | None = None) -> Trace:
    """The trace of a cell: from AIRSERVE_HOME/traces (`airserve traces` writes there), else from the package.

    A trace of the same scenario, carrier and antennas at another bandwidth serves too: the power is the same, so
    SNR shifts by the ratio of the bandwidths (what is lost is a change of frequency diversity).

    Raises `TraceError` with the command that makes the trace when there is none.

    >>> load(Cell(name="hall")).positions >= 50
    True
    """
    for folder in _folders(home):
        if (path := folder / file_name(cell)).is_file():
            return read(path)
    for folder in _folders(home):
        for path in sorted(folder.glob(f"{_stem(cell)}_*.npz")):
            return _rescaled(read(path), cell)
    given = [
        f" --{key.replace('_', '-')} {getattr(cell, key):g}"
        for key in ("carrier_ghz", "gnb_ports", "ue_antennas")
        if getattr(cell, key) != Cell.model_fields[key].default
    ]
    raise TraceError(
        f"cell {cell.name}: no radio trace of {cell.scenario} at {cell.carrier_ghz:g} GHz with {cell.gnb_ports} ports "
        f"and {cell.ue_antennas} UE antennas; make it with `airserve traces {cell.scenario}{''.join(given)}` "
        "(needs: pip install 'airserve[radio]')."
    )


def trace_folder(home: Path | None = None) -> Path:
    """Where traces made on this machine are kept: under `home`, AIRSERVE_HOME or `.airserve`."""
    return Path(home or os.environ.get("AIRSERVE_HOME") or ".airserve") / "traces"


def read(path: Path) -> Trace:
    """A trace from an .npz file that `tracing.save` wrote. Raises `TraceError` when it is not one."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            trace = Trace(
                str(file["scenario"]),
                float(file["snapshot_s"]),
                made_by=json.loads(str(file["made_by"])),
                **{name: file[name] for name in ARRAYS if name in file or name not in LATER},
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = str(error)[:80]
        raise TraceError(f"{path} is not a radio trace ({reason}); make it again with `airserve traces`.") from None
    rows = (getattr(trace, name) for name in ARRAYS if not name.endswith("position_m"))
    shapes = {array.shape[:2] for array in rows if array is not None}
    if shapes != {(trace.positions, trace.snapshots)}:
        raise TraceError(f"{path} holds arrays that do not fit together; make it again with `airserve traces`.")
    return trace


def assign(trace: Trace, ues: int, rng: Generator) -> tuple[Array, Array]:
    """Which row of the trace each UE follows, and from which step: two int64 arrays (ues,).

    Rows are drawn without repetition while they last, then all again; UEs on one row differ in their step. A step
    is a snapshot on the way forth and back, 0 to 2 * snapshots - 3.
    """
    rounds = -(-ues // trace.positions)
    rows = np.concatenate([rng.permutation(trace.positions) for _ in range(rounds)] or [np.empty(0, np.int64)])[:ues]
    return rows, rng.integers(0, max(1, 2 * trace.snapshots - 2), ues)


def rates(
    trace: Trace, direction: Direction, *, target_bler: float = 0.1, share: float = 1.0, max_layers: int = 4
) -> tuple[Array, Array, Array]:
    """Link adaptation on fresh knowledge: MCS (int8), layers (int8) and SINR in dB (float32), each (ue, snapshot).

    The MCS of TS 38.214 Table 5.1.3.1-2 and the number of layers that carry the most bits while the block error
    rate stays within the target. Where not even MCS 0 on one layer does, that is returned with its SINR, and
    `link.bler` says what becomes of it. `share` is the part of the PRBs that an uplink grant has: full power is
    spread over it. SINR has EVM applied.
    """
    snr_db = (trace.snr_down_db if direction == "down" else trace.snr_up_db)[..., :max_layers].astype(np.float64)
    if direction == "up":
        snr_db -= 10 * np.log10(share)
    sinr_db = _with_evm_db(snr_db)
    mcs = np.searchsorted(thresholds_db(target_bler), sinr_db, side="right") - 1
    layers = np.arange(1, snr_db.shape[-1] + 1)
    bits = np.where(mcs >= 0, EFFICIENCY[np.maximum(mcs, 0)] * layers, 0.0)
    best = bits.argmax(axis=-1)[..., None]
    return (
        np.maximum(np.take_along_axis(mcs, best, -1)[..., 0], 0).astype(np.int8),
        (best[..., 0] + 1).astype(np.int8),
        np.take_along_axis(sinr_db, best, -1)[..., 0].astype(np.float32),
    )


_with_evm_db = np.vectorize(with_evm_db, otypes=[np.float64])


def _stem(cell: Cell) -> str:
    return f"{cell.scenario}_{cell.carrier_ghz:g}ghz_{cell.gnb_ports}x{cell.ue_antennas}"


def _folders(home: Path | None) -> Iterator[Path]:
    yield trace_folder(home)
    yield Path(str(files("airserve.network") / "traces"))


def _rescaled(trace: Trace, cell: Cell) -> Trace:
    made = trace.made_by
    made_hz = resource_blocks(cell.carrier_ghz, made["scs_khz"])[made["bandwidth_mhz"]] * made["scs_khz"]
    shift_db = 10 * np.log10(made_hz / (cell.prbs * cell.scs_khz))
    shifted = {
        name: np.clip(np.rint(snr_db + shift_db), -128, 127).astype(np.int8)
        for name in ARRAYS
        if name.startswith("snr_") and (snr_db := getattr(trace, name)) is not None
    }
    note = {"rescaled_to_mhz": cell.bandwidth_mhz, "rescaled_by_db": round(float(shift_db), 2)}
    return replace(trace, **shifted, made_by={**made, **note})
