"""The MAC of one cell, slot by slot: bytes of devices go in, and come out when the radio has carried them.

TS 38.321 (MAC), TS 38.214 (transport blocks, link adaptation), TS 28.541 (slices). docs/mac.md says what is
modelled and what is not. buffers.py holds the state; adaptation.py, harq.py and scheduler.py are the steps of a slot.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike

from airserve.errors import UserError
from airserve.model import Array
from airserve.network import configured, control, frame, radio, rrc, uplink
from airserve.network.adaptation import REPORT_DELAY_MS, REPORT_PERIOD_MS
from airserve.network.allocation import granularity
from airserve.network.buffers import (
    BLOCK,
    DOWN,
    FLOW,
    NONE,
    RECORD,
    UP,
    Config,
    N,
    State,
    take_done,
)
from airserve.network.cell import SLOT_SYMBOLS, Cell
from airserve.network.channels import MOST_GROUPS, Belonging, Channel, lay_out
from airserve.network.equipment import as_wide, outfit
from airserve.network.harq import K1_SLOTS, PROCESSES, RLC_DELAY_MS
from airserve.network.intake import enqueue
from airserve.network.jit import njit
from airserve.network.lending import lend
from airserve.network.link import FIRST_64QAM
from airserve.network.pairing import CANDIDATE, CANDIDATES, MOST, beams
from airserve.network.scheduler import quiet, step
from airserve.network.slicing import SLICE, address, check
from airserve.network.topology import Network, whole_prbs

__all__ = ["DOWN", "UP", "Mac", "MacError", "Usage", "initial"]

Grant = Literal["sr", "configured"]

FIRST_GRANT_BYTES = 512  # that answers a scheduling request; SR_GRANT_BYTES of srsRAN

DELIVERED_NAMES = ["id", "ue", "direction", "nbytes", "arrived_s", "granted_s", "delivered_s"]
DELIVERED = np.dtype([(name, RECORD[name]) for name in DELIVERED_NAMES])
ARRIVAL = np.dtype([("slot", "i8"), ("flow", "i8"), ("nbytes", "i8"), ("at_s", "f8"), ("id", "i8")], align=True)
NO_RECORDS, NO_ARRIVALS = np.zeros(0, DELIVERED), np.zeros(0, ARRIVAL)


class MacError(UserError, ValueError):
    """A cell or an offer that the MAC cannot carry; the message is one sentence for the user."""


@dataclass(frozen=True)
class Usage:
    """What a cell did since its start. Arrays are by slice in the network's order, then direction (0 down, 1 up)."""

    seconds: float
    prbs: Array  # int64 (2,): that were there, in all slots of a direction
    prbs_used: Array  # int64 (slices, 2)
    nbytes: Array  # int64 (slices, 2): delivered, without the overheads of the radio and of IP
    blocks: int  # transport blocks, their first transmissions
    failed: int  # of these, not decoded at once
    resent: int  # HARQ retransmissions
    given_up: int  # blocks that HARQ gave up and RLC sent again
    requests: int  # scheduling requests

    @property
    def share_used(self) -> Array:
        """Of the PRBs that were there, shape (slices, 2)."""
        return self.prbs_used / np.maximum(self.prbs, 1)

    @property
    def mbps(self) -> Array:
        """Delivered application bytes, shape (slices, 2)."""
        return self.nbytes * 8e-6 / max(self.seconds, 1e-12)


@final
class Mac:
    """A cell with devices and their queues in both directions; times are seconds on its own clock, from 0.

    `slice_of` has the index of each device's slice, `kinds` what each is (equipment.py; none: all full). A device with
    several services has a logical channel for each: then these are by channel, as `ue` is wherever the MAC is asked or
    answers, `device_of` says whose each is, and `channels` its priority and rate (channels.py). `grant` is "sr"
    (scheduling requests and buffer status reports) or "configured" (a device may send in any uplink slot without
    asking). `processing` adds the times that a device takes to prepare and decode. Without `grant` the cell's own
    holds. `max_records` records have room at first; more get it.

    >>> from airserve.network.topology import Network
    >>> hall = Network.model_validate({"cells": [{"name": "hall"}], "slices": [{"name": "all"}],
    ...     "sites": [{"name": "mast", "kind": "edge"}]})
    >>> mac = Mac(hall, slice_of=[0], seed=1)
    >>> number = mac.offer(0, DOWN, nbytes=200, at_s=0.0001)
    >>> done = mac.run(0.01)
    >>> int(done["id"][0]) == number, mac.idle
    (True, True)
    """

    def __init__(
        self,
        network: Network,
        slice_of: Sequence[int],
        *,
        seed: int,
        trace: radio.Trace | None = None,
        grant: Grant | None = None,
        processing: bool = True,
        max_records: int = 1024,
        kinds: Sequence[str] = (),
        device_of: Sequence[int] | None = None,
        channels: Sequence[Channel] | None = None,
    ) -> None:
        if (cells := len(network.cell_names)) > 1:
            raise MacError(
                f"a MAC is that of one cell and this network has {cells}; the emulator and a booking hold one cell, "
                "several are for the twin: airserve simulate."
            )
        self._config, self._state = initial(
            network, slice_of, seed=seed, trace=trace, grant=grant, processing=processing, records=max_records,
            kinds=kinds, device_of=device_of, channels=channels,
        )  # fmt: skip
        self._slicing = network.cell.slicing
        self._offered: list[tuple[int, int, int, int, float]] = []  # heap: slot, id, flow, bytes, time
        self._ahead = NO_ARRIVALS  # those offered as arrays, by slot and id
        self._next_id = 0
        self._live = 0  # records in the state

    def offer(self, ue: int, direction: int, nbytes: int, at_s: float) -> int:
        """Queue bytes of a device (0 down, 1 up) that arrive at a time; returns the number of the record.

        A time in slots already run is late news: the bytes are sent from the next slot on and keep their stamp.
        Raises `MacError` when there is no such device or direction, or nothing to send.
        """
        if not (0 <= ue < self._config.ues and direction in (DOWN, UP) and nbytes > 0 and at_s >= 0):
            raise MacError(
                f"{nbytes} bytes in direction {direction} of device {ue} at {at_s:g} s cannot be sent: this cell has "
                f"devices 0 to {self._config.ues - 1}, directions 0 (down) and 1 (up), and records of 1 byte or more."
            )
        number = self._next_id
        self._next_id += 1
        slot = int(self._slots(at_s))
        heapq.heappush(self._offered, (slot, number, direction * self._config.ues + ue, nbytes, at_s))
        return number

    def offer_all(self, ue: ArrayLike, direction: ArrayLike, nbytes: ArrayLike, at_s: ArrayLike) -> Array:
        """As `offer` for each of many records, given as arrays that broadcast together; returns their numbers, int64.

        Raises `MacError` for the first that cannot be sent; none is queued then.
        """
        ues, directions, sizes, times_s = (np.ravel(a) for a in np.broadcast_arrays(ue, direction, nbytes, at_s))
        known = (ues >= 0) & (ues < self._config.ues) & ((directions == DOWN) | (directions == UP))
        if (wrong := np.flatnonzero(~(known & (sizes > 0) & (times_s >= 0)))).size:
            first = wrong[0]
            self.offer(int(ues[first]), int(directions[first]), int(sizes[first]), float(times_s[first]))
        made = np.empty(ues.size, ARRIVAL)
        made["slot"], made["at_s"] = self._slots(times_s), times_s
        made["flow"], made["nbytes"] = directions * self._config.ues + ues, sizes
        made["id"] = numbers = np.arange(self._next_id, self._next_id + ues.size)
        self._next_id += ues.size
        both = np.concatenate([self._ahead, made])
        self._ahead = both[np.argsort(both["slot"], kind="stable")]
        return numbers

    def run(self, until_s: float) -> Array:
        """Run every slot that starts before a time; returns the records delivered.

        A structured array in order of delivery: id, ue, direction, nbytes, arrived_s, granted_s (start of the first
        transmission), delivered_s, which is after the end of the slot and so may lie a little beyond `until_s`.
        """
        end = int(np.ceil(until_s / self._config.slot_s - 1e-6))
        due = []
        while self._offered and self._offered[0][0] < end:
            slot, number, flow, nbytes, at_s = heapq.heappop(self._offered)
            due.append((slot, flow, nbytes, at_s, number))
        arrivals = np.array(due, ARRIVAL) if due else NO_ARRIVALS
        if self._ahead.size:
            early = int(np.searchsorted(self._ahead["slot"], end))
            arrivals = np.concatenate([arrivals, self._ahead[:early]])
            if due:
                arrivals = arrivals[np.lexsort((arrivals["id"], arrivals["slot"]))]
            self._ahead = self._ahead[early:]
        self._live += arrivals.size
        self._make_room()
        done: Array = _run(self._state, self._config, arrivals, end)
        check(self._slicing, self._state.slices, self._config.prbs)
        if not len(done):  # in real time, almost every slot
            return NO_RECORDS
        self._live -= len(done)
        return done

    @property
    def idle(self) -> bool:
        """Nothing is offered or queued."""
        return self._live == 0 and not self._offered and self._ahead.size == 0

    @property
    def now_s(self) -> float:
        """End of the last slot that was run."""
        return float(self._state.n[N.slot] * self._config.slot_s)

    def usage(self) -> Usage:
        """PRBs and bytes since the start."""
        return usage(self._state, self._config)

    def _slots(self, at_s: Array | float) -> Array:
        """As `visible_slot`, which would look at all of the configuration's types again at each call from here."""
        slots: Array = np.ceil((at_s + self._config.prepare_s) / self._config.slot_s - 1e-9).astype(np.int64)
        return slots

    def _make_room(self) -> None:
        size = len(self._state.record)
        if self._live <= size:
            return
        fresh = np.zeros(max(self._live, 2 * size) - size, RECORD)
        fresh["next"] = np.arange(size + 1, size + len(fresh) + 1)
        fresh["next"][-1] = self._state.n[N.free_record]
        self._state.n[N.free_record] = size
        self._state = self._state._replace(record=np.concatenate([self._state.record, fresh]))


def usage(s: State, c: Config) -> Usage:
    """What a state has counted."""
    slots = int(s.n[N.slot])
    return Usage(
        slots * c.slot_s,
        prbs_there(s.pattern, c.prbs, slots),
        s.prbs_used.copy(),
        s.nbytes.copy(),
        *(int(s.n[i]) for i in (N.blocks, N.failed, N.resent, N.given_up, N.requests)),
    )


def prbs_there(pattern: Array, prbs: int, slots: int) -> Array:
    """PRBs of the first slots of a pattern, int64 (2,), by direction."""
    whole, rest = divmod(slots, len(pattern))
    used = pattern["elements"] > 0
    there: Array = prbs * (whole * used.sum(axis=0) + used[:rest].sum(axis=0))
    return there


@njit
def _run(state: State, config: Config, arrivals: Array, end: int) -> Array:
    """Run the slots before `end`; returns the records delivered, DELIVERED."""
    s, c = lend(state), lend(config)
    at = 0
    while s.n[N.slot] < end:
        while at < arrivals.size and arrivals[at].slot <= s.n[N.slot]:
            one = arrivals[at]
            enqueue(s, c, one.flow, one.nbytes, one.at_s, one.id)
            at += 1
        if quiet(s.n):
            s.n[N.slot] = min(end, max(arrivals[at].slot, s.n[N.slot] + 1)) if at < arrivals.size else end
        else:
            step(s, c)
    done = np.empty(s.n[N.done], DELIVERED)
    for i in range(done.size):
        one, record = done[i], s.record[take_done(s)]
        one.id, one.ue, one.direction, one.nbytes = record.id, record.ue, record.direction, record.nbytes
        one.arrived_s, one.granted_s, one.delivered_s = record.arrived_s, record.granted_s, record.delivered_s
    return done


def initial(
    network: Network,
    slice_of: Sequence[int],
    *,
    seed: int,
    trace: radio.Trace | None = None,
    grant: Grant | None = None,
    processing: bool = True,
    records: int = 1024,
    kinds: Sequence[str] = (),
    device_of: Sequence[int] | None = None,
    channels: Sequence[Channel] | None = None,
) -> tuple[Config, State]:
    """A cell at its start, for `Mac` and for the twin. Raises `MacError` and `ChannelError` for what cannot be."""
    cell, ues = network.cell, len(slice_of)
    if ues == 0 or min(slice_of) < 0 or max(slice_of) >= len(network.slices):
        raise MacError(
            f"cell {cell.name} needs at least one device, each in a slice from 0 to {len(network.slices) - 1}; "
            f"it was given {list(slice_of)[:8]}."
        )
    grant = grant or cell.grant
    if grant not in ("sr", "configured"):
        raise MacError(f"grant {grant!r} is unknown; choose sr or configured.")
    devices = np.arange(ues) if device_of is None else np.asarray(device_of, np.int64)
    channels = (Channel(),) * ues if channels is None else channels
    if len(devices) != ues or len(channels) != ues:
        raise MacError(
            f"cell {cell.name} was given {ues} channels by slice, {len(devices)} by device and {len(channels)} by "
            "priority; give each channel all three."
        )
    asking = len(set(zip(devices.tolist(), slice_of, strict=True)))  # a device asks for each of its slices apart
    if grant == "sr" and (sentence := uplink.too_many(cell, asking)):
        raise MacError(sentence)
    if grant == "configured" and any(one.configured_grant for one in channels):
        raise MacError(
            f"cell {cell.name} has grant: configured, by which devices may send in every uplink slot; a service's "
            "configured_grant means nothing there, so leave one of them out."
        )
    rng = np.random.default_rng(seed)
    config = config_of(cell, trace := trace or radio.load(cell), len(network.slices), ues, grant, processing)
    belongs = Belonging(np.asarray(slice_of, np.int64), devices, channels)
    state = state_of(network, config, belongs, trace, rng, records)
    if kinds:  # a device is what its first service says
        state = outfit(state, cell, trace, [kinds[k] for k in state.flow["ue"][:ues]])
    return config, configured.book_all(state, cell, channels)


def config_of(
    cell: Cell, trace: radio.Trace, slices: int, ues: int, grant: Grant, processing: bool, alone: bool = True
) -> Config:
    slot_s = cell.slot_ms / 1000
    decode, prepare = (n / 2 * slot_s / SLOT_SYMBOLS for n in frame.processing_symbols(cell))
    return Config(
        ues=ues,
        slices=slices,
        prbs=cell.prbs,
        group=granularity(cell),
        alone=alone,
        slot_s=slot_s,
        policy=address(cell.slicing),
        configured=grant == "configured",
        k1=K1_SLOTS,
        k2=cell.k2_slots,
        request_period=uplink.request_period(cell),
        request_bytes=FIRST_GRANT_BYTES,
        target_bler=cell.target_bler,
        report_period=round(REPORT_PERIOD_MS / cell.slot_ms),
        report_delay=round(REPORT_DELAY_MS / cell.slot_ms),
        snapshot=trace.snapshot_s / slot_s,
        together=MOST if cell.mimo == "mu" else 1,
        rlc_delay=round(RLC_DELAY_MS / cell.slot_ms),
        cces=control.shares(cell),
        access=rrc.access(cell),
        prach_slot=rrc.prach_slot(cell),
        prepare_s=prepare if processing else 0.0,
        decode_s=decode if processing else 0.0,
    )


def state_of(
    network: Network, c: Config, belongs: Belonging, trace: radio.Trace, rng: np.random.Generator, records: int
) -> State:
    flow = np.zeros(2 * c.ues, FLOW)
    flow["ue"], flow["slice"] = np.tile(np.arange(c.ues), 2), np.tile(belongs.slice_of, 2)
    channel = lay_out(flow, belongs, network.slices, c.slot_s)
    flow["direction"] = np.repeat([DOWN, UP], c.ues)
    for name in ("head", "tail", "unsent", "failed", "report", "served", "heard", "needed_bytes"):
        flow[name] = NONE
    rows, offsets = radio.assign(trace, c.ues, rng)
    flow["row"], flow["offset"] = rows[flow["ue"]], offsets[flow["ue"]]
    pattern = frame.pattern(network.cell)
    flow["open_db"] = uplink.open_loop_db(network.cell, trace)[flow["row"]]
    flow["most"], flow["mcs_last"], flow["antennas"] = c.prbs, FIRST_64QAM - 1, network.cell.ue_antennas
    flow["strength_db"] = np.nan  # not worked out yet
    opportunities = uplink.request_slots(network.cell)
    flow["request_offset"] = opportunities[np.arange(2 * c.ues) % c.ues % len(opportunities)]
    blocks = min(2 * c.ues * (PROCESSES + 8), 8192 + 4 * c.ues)  # in flight, and lost; none free: a flow waits
    if channel.size:
        blocks *= 1 + MOST_GROUPS  # rows of a block
    block = np.zeros(blocks + 3 * c.ues, BLOCK)
    block["flow"][blocks:] = np.concatenate([np.arange(c.ues), np.arange(2 * c.ues)])
    block["next"] = np.arange(1, len(block) + 1)
    block["next"][blocks - 1] = NONE
    record = np.zeros(records, RECORD)
    record["next"] = np.arange(1, records + 1)
    record["next"][-1] = NONE
    n = np.zeros(N.size, np.int64)
    n[N.random] = rng.integers(1, 2**63 - 1)
    n[[N.done_first, N.done_last, N.resend + DOWN, N.resend + UP, N.air, N.due]] = NONE
    farthest = configured.longest(network.cell, belongs.channels) + c.request_period + rrc.farthest(c.access)
    ahead = farthest + c.rlc_delay + c.k1 + c.k2 + 4 * len(network.cell.symbols)
    snr_db = as_wide(trace, max(trace.snr_down_db.shape[-1], trace.snr_up_db.shape[-1]))
    return State(
        n=n,
        flow=flow,
        block=block,
        record=record,
        calendar=np.full(1 << int(ahead).bit_length(), NONE),
        active=np.full((2, c.slices), NONE),
        slices=_slices(network, pattern),
        pattern=pattern,
        ue=rrc.devices(network.cell, c.ues, rng),
        preamble=np.full((rrc.PREAMBLES, 2), NONE),
        levels=uplink.levels(network.cell.buffer_status),
        long_levels=uplink.levels("exact" if network.cell.buffer_status == "exact" else "long"),
        channel=channel,
        standing=np.zeros(0, configured.STANDING),
        booked=np.zeros((0, c.slices), np.int64),
        snr_db=snr_db,
        reported_db=np.zeros((2 * c.ues, snr_db.shape[-1])),
        whole_db=np.zeros((2 * c.ues, snr_db.shape[-1])),
        beams=beams(network.cell, trace),
        candidate=np.zeros(CANDIDATES, CANDIDATE),
        prbs_used=np.zeros((c.slices, 2), np.int64),
        nbytes=np.zeros((c.slices, 2), np.int64),
    )


def _slices(network: Network, pattern: Array) -> Array:
    """What the slice policy sees at the start, as slicing.SLICE (2, slices)."""
    cell = network.cell
    slices = np.zeros((2, len(network.slices)), SLICE)
    for to, key in (("dedicated", "dedicated"), ("minimum", "min"), ("maximum", "max")):
        slices[to] = [whole_prbs(getattr(s, key), cell.prbs) for s in network.slices]
    slices["priority"] = [s.quality.priority for s in network.slices]
    slices["budget_s"] = [s.budget_ms / 1e3 for s in network.slices]
    for direction in (DOWN, UP):
        slices["turns"][direction] = turns = float((pattern["elements"][:, direction] > 0).mean())
        slices["window"][direction] = max(1.0, cell.slicing_window_ms / cell.slot_ms * turns)
    return slices
