"""What kind of device it is: a full one, or one of reduced capability (RedCap). TS 38.306 4.2.21, TR 38.875.

A RedCap device hears and sends on 20 MHz (100 MHz in FR2), receives with one antenna and one layer or with two of
each, sends with one, and need not know 256QAM nor, on a paired band, send and receive at once. Its processing times
are those of any other (capability 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from airserve.errors import UserError
from airserve.model import Array
from airserve.network import energy, uplink
from airserve.network.allocation import granularity
from airserve.network.buffers import State
from airserve.network.cell import Cell, resource_blocks
from airserve.network.link import ALL_QM, FIRST_64QAM
from airserve.network.radio import Trace, TraceError

NO_SNR_DB = -200.0  # of layers that a device does not have
BANDWIDTH_MHZ = {1: 20, 2: 100}  # of a RedCap device, by frequency range
ALLOWED: dict[str, dict[str, int]] = {
    "antennas": {"1": 1, "2": 2},
    "qam": {"64": 64, "256": 256},
    "duplex": {"full": 0, "half": 1},
}


class EquipmentError(UserError, ValueError):
    """A kind of device that does not exist; one sentence for the user."""


@dataclass(frozen=True)
class Equipment:
    """A kind of device; `full` has the cell's antennas, 256QAM and the carrier's bandwidth."""

    kind: str = "full"
    antennas: int = 1  # of a RedCap device, that receive; as many layers
    qam: int = 64  # the highest that it knows, in both directions
    duplex: int = 0  # 1: on a paired band it does not send while it receives (type A)

    @property
    def reduced(self) -> bool:
        return self.kind == "redcap"

    def prbs(self, cell: Cell) -> int:
        """The most PRBs of one grant.

        >>> parse("redcap").prbs(Cell(name="hall")), parse("full").prbs(Cell(name="hall"))
        (51, 273)
        """
        if not self.reduced:
            return cell.prbs
        prbs = resource_blocks(cell.carrier_ghz, cell.scs_khz)[BANDWIDTH_MHZ[cell.frequency_range]]
        return cell.prbs if cell.prbs <= prbs else prbs - prbs % granularity(cell)

    def draw(self, cell: Cell) -> energy.Draw:
        """What it draws by what it does."""
        if not self.reduced:
            return energy.draw(cell)
        antennas = min(self.antennas, cell.ue_antennas)
        return energy.draw(cell, BANDWIDTH_MHZ[cell.frequency_range], antennas, half=bool(self.duplex))


def parse(text: str) -> Equipment:
    """A kind with its parameters: `full`, or `redcap` with antennas=1|2, qam=64|256, duplex=full|half.

    Raises `EquipmentError`.

    >>> parse("redcap,antennas=2,qam=256")
    Equipment(kind='redcap', antennas=2, qam=256, duplex=0)
    """
    kind, *parameters = (part.strip() for part in text.split(","))
    if kind not in ("full", "redcap"):
        raise EquipmentError(f"no kind of device is named {kind!r}; there is full, and redcap.")
    given: dict[str, Any] = {}
    for one in parameters:
        key, _, value = one.partition("=")
        if kind == "full" or value not in ALLOWED.get(key, {}):
            known = ", ".join(f"{name}={'|'.join(values)}" for name, values in ALLOWED.items())
            raise EquipmentError(
                f"a {kind} device has no parameter {one!r}; "
                + ("leave it out, or choose redcap." if kind == "full" else f"a redcap device may have {known}.")
            )
        given[key] = ALLOWED[key][value]
    return Equipment(kind, **given)


def heard_by(equipment: Equipment, cell: Cell, trace: Trace) -> Trace:
    """The radio of the trace's places with the antennas of a RedCap device; that of a full one is as it is.

    Not scaled from the SNR with all antennas but worked out, when the trace was made, from the same channels: those
    between the base station and the antennas that are left. Raises `TraceError` for a trace without them.

    >>> from airserve.network import radio
    >>> hall = Cell(name="hall")
    >>> heard_by(parse("redcap"), hall, radio.load(hall)).snr_down_db.shape[-1]
    1
    """
    if not equipment.reduced or cell.ue_antennas == 1:
        return trace
    down = trace.snr_down_1_db if equipment.antennas == 1 else trace.snr_down_2_db
    if down is None or trace.snr_up_1_db is None:
        raise TraceError(
            f"cell {cell.name}: this trace of {trace.scenario} does not say how a redcap device hears with fewer "
            "antennas; make it again with `airserve traces`, or leave `ue: redcap` out."
        )
    return replace(trace, snr_down_db=down, snr_up_db=trace.snr_up_1_db)


def outfit(one: State, cell: Cell, trace: Trace, ues: Sequence[str]) -> State:
    """Give the devices of a state, all of them full, what they are: one kind for each, as `parse` reads it.

    The radio of a kind stands behind that of the full ones, as more rows.
    """
    flow, kinds = one.flow, sorted(set(ues) - {"full"})
    rows = trace.positions
    for k, text in enumerate(kinds, 1):
        equipment = parse(text)
        mine = np.tile([ue == text for ue in ues], 2)
        flow["most"][mine] = equipment.prbs(cell)
        flow["antennas"][mine] = antennas = min(equipment.antennas, cell.ue_antennas)
        flow["half"][mine] = equipment.duplex if cell.duplex == "fdd" else 0
        if equipment.qam == 64:
            flow["mcs_first"][mine], flow["mcs_last"][mine] = FIRST_64QAM, len(ALL_QM) - 1
        heard = heard_by(equipment, cell, trace)
        open_db = uplink.open_loop_db(cell, heard) - uplink.open_loop_db(cell, trace)
        flow["open_db"][mine] += open_db[flow["row"][mine]]
        flow["row"][mine] += k * rows
        beams = one.beams
        if len(beams.share):
            less = np.float32(antennas / cell.ue_antennas)  # of what CSI has wrong, over the antennas
            beams = beams._replace(
                vector=np.concatenate([beams.vector, beams.vector[:rows]]),
                share=np.concatenate([beams.share, beams.share[:rows]]),
                error=np.concatenate([beams.error, less * beams.error[:rows]]),
            )
        snr_db = np.concatenate([one.snr_db, as_wide(heard, one.snr_db.shape[-1])], axis=1)
        one = one._replace(snr_db=snr_db, beams=beams)
    return one


def as_wide(trace: Trace, layers: int) -> Array:
    """SNR by direction, float32 (2, rows, snapshots, layers); layers that are not there get one too low to be sent."""
    return np.stack(
        [
            np.pad(
                snr.astype(np.float32),
                [(0, 0), (0, 0), (0, layers - snr.shape[-1])],
                constant_values=np.float32(NO_SNR_DB),
            )
            for snr in (trace.snr_down_db, trace.snr_up_db)
        ]
    )
