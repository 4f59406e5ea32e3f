"""Several carriers of a base station, alike or not: each device is on one of them all along.

Carriers that are alike are of one kind. Kinds differ in the length of a slot, PRBs, pattern, band and so radio; devices
of all kinds stand in one State, whose fields have what follows from the carrier that a device is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import get_type_hints

import numpy as np

from airserve.model import Array
from airserve.network import radio
from airserve.network.association import Surroundings
from airserve.network.buffers import Config, State
from airserve.network.cell import Cell
from airserve.network.equipment import NO_SNR_DB
from airserve.network.jit import inner
from airserve.network.rrc import Access
from airserve.network.topology import Network

FIELDS = {int: "i8", float: "f8", bool: "?"}
ACCESS = np.dtype([(name, FIELDS[of]) for name, of in get_type_hints(Access).items()], align=True)
CONFIG = np.dtype(  # buffers.Config, of which a compiled loop can take the one that it needs
    [(name, FIELDS[of]) for name, of in get_type_hints(Config).items() if of in FIELDS]
    + [("cces", "i8", (2,)), ("access", ACCESS)],
    align=True,
)
# What follows from a device's carrier, of buffers.FLOW beside `row`, and of UE:
OF_FLOW = (
    "offset", "shift_db", "open_db", "request_offset", "most", "mcs_first", "mcs_last", "antennas", "half"
)  # fmt: skip
OF_UE = ("paging_offset", "drx_offset")


@dataclass(frozen=True)
class Kinds:
    """The kinds of carriers that each base station of a network has."""

    cells: tuple[Cell, ...]  # of each kind
    of_carrier: Array  # int64 (carriers,)

    def of_cells(self, stations: int) -> Array:
        """Of all carriers of all base stations, int64 (stations * carriers,), in the order of their names."""
        return np.tile(self.of_carrier, stations)


def kinds(network: Network) -> Kinds:
    """The first carrier is of kind 0.

    >>> from airserve.network.topology import Site, Slice
    >>> three = [{}, {"bandwidth_mhz": 40}, {}]
    >>> hall = Network(cells=(Cell(name="hall", carriers=three),), slices=(Slice(name="all"),),
    ...     sites=(Site(name="mast", kind="edge"),))
    >>> kinds(hall).of_carrier.tolist()
    [0, 1, 0]
    """
    cells = tuple(dict.fromkeys(network.carriers))
    return Kinds(cells, np.array([cells.index(cell) for cell in network.carriers]))


def alone(network: Network, cell: Cell) -> Network:
    """The network with one carrier, of a kind."""
    cells = tuple(cell.model_copy(update={"name": one.name, "trps": one.trps}) for one in network.cells)
    return network.model_copy(update={"cells": cells})


def traces(of: Kinds, given: radio.Trace | Sequence[radio.Trace] | None) -> list[radio.Trace]:
    """A trace for each kind: those given, in order of the kinds, or those of the cells.

    Raises `TraceError` where they are too few, or cannot be read side by side.
    """
    found = [given] if isinstance(given, radio.Trace) else list(given or map(radio.load, of.cells))
    if len(found) != len(of.cells):
        raise radio.TraceError(
            f"cell {of.cells[0].name} has carriers of {len(of.cells)} kinds and {len(found)} traces were given; "
            "give one for each kind, or none."
        )
    for cell, trace in zip(of.cells, found, strict=True):
        if trace.snapshots != found[0].snapshots:
            raise radio.TraceError(
                f"cell {cell.name}: the trace at {cell.carrier_ghz:g} GHz has {trace.snapshots} snapshots and that at "
                f"{of.cells[0].carrier_ghz:g} GHz {found[0].snapshots}; carriers of one cell need as many: make one "
                "again with `airserve traces --snapshots`."
            )
    return found


def side_by_side(parts: Sequence[Surroundings], of: Kinds, on: Array) -> Surroundings:
    """All carriers of all base stations as cells: a device hears those of the carrier that it is `on` (ues,).

    `parts` has the devices and base stations as each kind sees them.
    """
    kind = of.of_carrier[on]
    each, ues = len(of.of_carrier), np.arange(len(on))

    def chosen(name: str) -> Array:
        found: Array = np.stack([getattr(part, name) for part in parts])[kind, ues]
        return found

    heard = on[:, None, None] == np.arange(each)
    loss_db = np.stack([parts[k].loss_db for k in of.of_carrier], axis=-1)  # ue, station, carrier
    return replace(
        parts[0],
        position_m=chosen("position_m"),
        row=chosen("row"),
        step=chosen("step"),
        own_loss_db=chosen("own_loss_db"),
        cell_position_m=parts[0].cell_position_m.repeat(each, axis=0),
        boresight=parts[0].boresight.repeat(each),
        loss_db=np.where(heard, loss_db, np.inf).reshape(len(on), -1),
    )


def together(parts: Sequence[State], kind: Array) -> tuple[State, Array]:
    """One State for devices of several kinds (ues,), and the pattern of each kind; `parts` are states of all as each.

    Rows of the radio of a kind stand behind those of the kinds before it; patterns are repeated to one length.
    """
    length = lcm(*(len(part.pattern) for part in parts))
    patterns = np.stack([np.tile(part.pattern, length // len(part.pattern)) for part in parts])
    patterns.flags.writeable = False  # as frame.pattern: compiled once for one cell and several
    one, rows = parts[0], 0
    layers = max(part.snr_db.shape[-1] for part in parts)
    for k, part in enumerate(parts):
        mine = np.tile(kind == k, 2)
        for name in OF_FLOW:
            one.flow[name][mine] = part.flow[name][mine]
        one.flow["row"][mine] = rows + part.flow["row"][mine]
        for name in OF_UE:
            one.ue[name][kind == k] = part.ue[name][kind == k]
        rows += part.snr_db.shape[1]
    if len(parts) == 1:
        return one, patterns
    missing = [(0, 0), (0, 0), (0, 0)]
    snr_db = [
        np.pad(part.snr_db, [*missing, (0, layers - part.snr_db.shape[-1])], constant_values=np.float32(NO_SNR_DB))
        for part in parts
    ]
    beams = type(one.beams)(*(np.concatenate(some) for some in zip(*(part.beams for part in parts), strict=True)))
    seen = np.zeros((len(one.flow), layers))
    return (
        one._replace(
            snr_db=np.concatenate(snr_db, axis=1),
            reported_db=seen,
            whole_db=seen.copy(),
            beams=beams,
            calendar=max((part.calendar for part in parts), key=len),
        ),
        patterns,
    )


def packed(configs: Sequence[Config]) -> Array:
    """As CONFIG (kinds,)."""
    return np.array([tuple(tuple(x) if isinstance(x, tuple) else x for x in in_order(one)) for one in configs], CONFIG)


def in_order(one: Config) -> list[object]:
    """Values in the order of CONFIG."""
    return [getattr(one, name) for name in CONFIG.names or ()]


@inner
def config(table: Array, k: int) -> Config:
    """Of a kind, from the table that `packed` makes."""
    one = table[k]
    a = one.access
    return Config(
        one.ues, one.slices, one.prbs, one.group, one.alone, one.slot_s, one.policy, one.configured, one.k1, one.k2,
        one.request_period, one.request_bytes, one.target_bler, one.report_period, one.report_delay, one.snapshot,
        one.together, one.rlc_delay, (one.cces[0], one.cces[1]),
        Access(
            a.always_on, a.inactivity, a.inactive, a.paging, a.prach, a.resolved, a.contention, a.backoff, a.resume,
            a.setup, a.drx_inactivity, a.drx_cycle, a.drx_on, a.soonest, a.deep, a.light,
        ),
        one.prach_slot, one.prepare_s, one.decode_s,
    )  # fmt: skip
