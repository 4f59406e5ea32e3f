"""Configured grants of type 1: PRBs of a service's own, period after period, that need no request and no PDCCH.

TS 38.321 5.8.2, TS 38.331 ConfiguredGrantConfig. What is not used is lent to nobody. Only the service's own channel
may use it (configuredGrantType1Allowed), and what comes to that channel sends no scheduling request
(logicalChannelSR-Mask): the block's buffer status report asks for what does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, log10

import numpy as np

from airserve.model import Array
from airserve.network.adaptation import QM, RATE, THRESHOLD_DB
from airserve.network.allocation import granularity
from airserve.network.buffers import (
    NONE,
    OCCASION,
    UP,
    Config,
    N,
    State,
    later,
    wire_bytes,
)
from airserve.network.cell import Cell
from airserve.network.channels import Channel, ChannelError, ConfiguredGrant
from airserve.network.headers import BLOCK
from airserve.network.jit import inner
from airserve.network.link import tbs_bits, with_evm_db

POOR = 5  # percentile of a device's SNR at which its grant's MCS, which stays as it is, has to hold
LONGEST_MS = 640.0  # periodicityExt of TS 38.331
MOST_SLOTS = 1 << 17  # until all periods have met

STANDING = np.dtype(  # of a channel, by number
    [
        ("period", "i8"),  # slots; 0: it has no configured grant
        ("offset", "i8"),
        ("prbs", "i8"),
        ("mcs", "i8"),
        ("awaited", "i8"),  # its next occasion stands in the calendar
        ("next", "i8"),  # in the list of those whose occasion is in this slot
    ],
    align=True,
)


def longest(cell: Cell, channels: Sequence[Channel]) -> int:
    """The longest period of a cell's configured grants in slots, 0 where it has none. Raises `ChannelError`."""
    return max((_slots(cell, one.configured_grant) for one in channels if one.configured_grant), default=0)


def book_all(state: State, cell: Cell, channels: Sequence[Channel]) -> State:
    """A state at its start with the configured grants of its channels in `standing` and `booked`.

    The MCS is the highest that holds at all but the poorest 5 % of a device's SNR, as a network would set it that had
    watched the device. Raises `ChannelError` for a grant that cannot be.
    """
    wanted = {k: one.configured_grant for k, one in enumerate(channels) if one.configured_grant is not None}
    if not wanted:
        return state
    elements, ues = state.pattern["elements"][:, UP], len(channels)
    periods = {k: _slots(cell, one) for k, one in wanted.items()}
    if (together := lcm(len(elements), *periods.values())) > MOST_SLOTS:
        raise ChannelError(
            f"cell {cell.name}: the periods of its configured grants meet only every {together * cell.slot_ms / 1e3:g} "
            "s; give them periods that divide each other."
        )
    elements = np.resize(elements, together)
    standing, booked = np.zeros(ues, STANDING), np.zeros((together, state.prbs_used.shape[0]), np.int64)
    for k, one in wanted.items():
        period, flow = periods[k], state.flow[ues + k]
        up = np.flatnonzero(elements[:period] > 0)
        if one.offset_ms is not None:
            offset = int(up[np.searchsorted(up, round(one.offset_ms / cell.slot_ms)) % len(up)])
        else:  # where least is booked
            offset = int(up[np.argmin([booked[slot::period].sum(axis=1).max() for slot in up])])
        snr_db = float(np.percentile(state.snr_db[UP, flow["row"], :, 0], POOR))
        prbs, mcs = _size(cell, one, flow, snr_db, int(elements[offset::period].min()))
        standing[k]["period"], standing[k]["offset"] = period, offset
        standing[k]["prbs"], standing[k]["mcs"] = prbs, mcs
        booked[offset::period, flow["slice"]] += prbs
    if (most := int(booked.sum(axis=1).max())) > cell.prbs:
        raise ChannelError(
            f"cell {cell.name}: its configured grants take {most} PRBs in one slot and it has {cell.prbs}; "
            "make periods longer or bytes fewer, or leave offset_ms out, so that they are spread."
        )
    return state._replace(standing=standing, booked=booked)


def _slots(cell: Cell, one: ConfiguredGrant) -> int:
    """Period in slots, which has to be whole patterns."""
    cycle_ms = len(cell.symbols) * cell.slot_ms
    patterns = one.period_ms / cycle_ms
    if abs(patterns - round(patterns)) > 1e-6 or not 1 <= round(patterns) <= LONGEST_MS / cycle_ms:
        raise ChannelError(
            f"cell {cell.name}: a configured grant every {one.period_ms:g} ms does not meet its uplink slots, which "
            f"repeat every {cycle_ms:g} ms; give a multiple of that up to {LONGEST_MS:g} ms."
        )
    return round(patterns) * len(cell.symbols)


def _size(cell: Cell, one: ConfiguredGrant, flow: Array, snr_db: float, elements: int) -> tuple[int, int]:
    """PRBs and MCS of a device's grant: the fewest PRBs that hold the bytes."""
    bits = 8 * (wire_bytes(one.bytes) + sum(BLOCK.values()))
    step, most, first = granularity(cell), int(flow["most"]), int(flow["mcs_first"])
    thresholds_db = THRESHOLD_DB[first : int(flow["mcs_last"]) + 1]
    for n in range(step, most + step, step):
        prbs = min(n, most)
        sinr_db = with_evm_db(snr_db + min(10 * log10(cell.prbs / prbs), float(flow["open_db"])))
        mcs = first + max(int(np.searchsorted(thresholds_db, sinr_db, side="right")) - 1, 0)
        if tbs_bits(elements * prbs, int(QM[mcs]), float(RATE[mcs]), 1) >= bits:
            return prbs, mcs
    raise ChannelError(
        f"cell {cell.name}: a configured grant of {one.bytes} bytes does not fit its {most} PRBs at "
        f"{snr_db:.0f} dB; give fewer bytes, the rest of a message follows by dynamic grants."
    )


@inner
def book(given: Array, booked: Array, prbs: int) -> None:
    """See that every slice is given what is booked in it: from what is left, then from those that have most beside."""
    free = prbs
    for k in range(given.size):
        free -= given[k]
    for k in range(given.size):
        short = booked[k] - given[k]
        while short > 0:
            most = NONE
            for j in range(given.size):
                if given[j] > booked[j] and (most == NONE or given[j] - booked[j] > given[most] - booked[most]):
                    most = j
            more = min(short, free if free > 0 or most == NONE else given[most] - booked[most])
            if free > 0:
                free -= more
            elif most == NONE:
                return
            else:
                given[most] -= more
            given[k] += more
            short -= more


@inner
def has_standing(s: State, c: Config, f: int) -> bool:
    """Whether a flow's channel has a configured grant."""
    return bool(s.standing.size > 0 and s.flow[f].direction == UP and s.standing[f - c.ues].period > 0)


@inner
def await_occasion(s: State, c: Config, f: int, slot: int) -> None:
    """Note a channel's first occasion from a slot on in the calendar, in the place of its downlink: that never asks."""
    one = s.standing[f - c.ues]
    if not one.awaited:
        one.awaited = 1
        later(s, s.block.size - s.flow.size + f - c.ues, slot + (one.offset - slot) % one.period, OCCASION)


@inner
def due(s: State, number: int) -> None:
    """A channel's occasion is in the slot being run."""
    s.standing[number].next = s.n[N.due]
    s.n[N.due] = number
