"""Admission: whether a slice that somebody wants to book fits beside those that are there, and if not, what would.

What is asked for is what a slice booking asks for (CAMARA network-slice-booking: devices, rate of each in both
directions), or a share of the PRBs. A guarantee is a minimum share (RRMPolicyRatio, TS 28.541 4.3.36): it fits where
all minima stay within the carrier, whatever anybody uses at the moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from airserve.errors import UserError
from airserve.network import radio, uplink
from airserve.network.budget import budget
from airserve.network.mac import DOWN, UP, Mac
from airserve.network.pairing import MOST
from airserve.network.topology import Network, Slice, least_percent, whole_prbs

DEVICES = 20  # that a capacity is measured with
MOST_DEVICES = 10_000
LEAST_MBPS, MOST_MBPS = 1e-6, 1e5  # of a device; 400 MHz carry 21 Gbit/s on 8 layers


class AdmissionError(UserError, ValueError):
    """A booking that cannot be met; one sentence with the share that could."""


@dataclass(frozen=True)
class Booking:
    """What somebody asks of a cell for some time."""

    devices: int
    up_mbps: float = 0.0  # of each device
    down_mbps: float = 0.0
    dedicated: bool = False  # never lent to others, even while idle


@dataclass(frozen=True)
class Capacity:
    """What a whole carrier carries, application bytes: of the cell where the devices are (`capacity`)."""

    up_mbps: float
    down_mbps: float
    prbs: int = 1000  # in which shares are given; so many: tenths of a per cent
    devices: int = MOST_DEVICES  # that it hears when they ask for grants


def capacity(network: Network, seed: int = 0, booked: int = DEVICES, seconds: float = 1.0) -> Capacity:
    """What the cell carries, in the MAC, for devices at random positions that have more to send than fits.

    What is offered is what all resource elements would carry on all layers. Devices that are `booked`, if fewer than
    20, are as many as share PRBs where `mimo` is mu.
    """
    cell = network.cell
    devices = max(1, min(booked, DEVICES)) if cell.mimo == "mu" else DEVICES
    one = network.model_copy(update={"slices": (Slice(name="all", min=100),)})
    mac = Mac(one, [0] * devices, seed=seed, grant="configured")
    trace = radio.load(cell)
    raw_mbps = budget(cell, "down", layers=1).raw_mbps  # of a layer, whichever way
    for direction, snr_db, record_bytes in ((DOWN, trace.snr_down_db, 100_000), (UP, trace.snr_up_db, 20_000)):
        layers = MOST if cell.mimo == "mu" else snr_db.shape[-1]
        records = math.ceil(seconds * layers * raw_mbps * 1e6 / 8 / record_bytes)
        mac.offer_all(np.arange(records) % devices, direction, record_bytes, 0.0)
    mac.run(seconds)
    down, up = mac.usage().mbps[0]
    heard = uplink.heard(network) if cell.grant == "sr" else MOST_DEVICES
    return Capacity(float(up), float(down), cell.prbs, heard)


def share(booking: Booking, capacity: Capacity) -> float:
    """Per cent of the PRBs that a booking needs, in the direction that needs more, up to a whole PRB and a tenth.

    Raises `AdmissionError` for what no cell could be asked.

    >>> share(Booking(devices=10, up_mbps=1.5), Capacity(up_mbps=60, down_mbps=800))
    25.0
    >>> share(Booking(devices=10, up_mbps=1.5), Capacity(up_mbps=60, down_mbps=800, prbs=273))
    25.3
    """
    rates = (booking.up_mbps, booking.down_mbps)
    possible = all(rate == 0 or LEAST_MBPS <= rate <= MOST_MBPS for rate in rates)
    if not (1 <= booking.devices <= MOST_DEVICES and possible and any(rates)):
        raise AdmissionError(
            f"a booking for {booking.devices} devices at {rates[0]:g} Mbit/s up and {rates[1]:g} down cannot be met; "
            f"give 1 to {MOST_DEVICES} devices, and one rate or both of {LEAST_MBPS:f} to {MOST_MBPS:.0f}."
        )
    parts = zip(rates, (capacity.up_mbps, capacity.down_mbps), strict=True)
    need = max(booking.devices * rate / of if rate else 0.0 for rate, of in parts)
    return least_percent(max(1, math.ceil(round(need * capacity.prbs, 6))), capacity.prbs)


def free(slices: Sequence[Slice]) -> float:
    """Per cent of the PRBs that no minimum of a slice holds.

    >>> free([Slice(name="a", min=20), Slice(name="b", dedicated=30)])
    50.0
    """
    return 100.0 - sum(one.min for one in slices)


def admit(slices: Sequence[Slice], name: str, booking: Booking, capacity: Capacity, known: int = 0) -> Slice:
    """The slice that keeps a booking beside others, and beside `known` devices of theirs.

    Raises `AdmissionError` with the share and devices that could.

    >>> hall = Capacity(up_mbps=60, down_mbps=800)
    >>> admit([Slice(name="a", min=70)], "b", Booking(devices=10, up_mbps=1.5), hall).min
    25.0
    >>> admit([Slice(name="a", min=80)], "b", Booking(devices=10, up_mbps=1.5), hall)
    Traceback (most recent call last):
    airserve.network.admission.AdmissionError: slice b needs 25 % of the PRBs for 10 devices and 20 % are free; \
20 % could be booked, for 8 devices.
    """
    if min(capacity.up_mbps, capacity.down_mbps) <= 0:
        raise AdmissionError(
            f"slice {name} cannot be booked: the cell carries {capacity.up_mbps:g} Mbit/s up and "
            f"{capacity.down_mbps:g} down; look at its bandwidth, pattern and p0_dbm."
        )
    try:
        Slice(name=name)
    except ValidationError:
        raise AdmissionError(
            f"{name!r} is not a name for a slice; use up to 40 lower-case letters, digits and hyphens."
        ) from None
    if name in (names := [one.name for one in slices]):
        raise AdmissionError(
            f"slice {name} is there already, beside {', '.join(names)}; give the booking its own name."
        )
    need, left = share(booking, capacity), math.floor(round(10 * free(slices), 6)) / 10
    if (there := known + booking.devices) > capacity.devices:
        raise AdmissionError(
            f"slice {name} cannot be booked: the PUCCH carries scheduling requests of {capacity.devices} devices and "
            f"{there} would be there; raise the cell's sr_period_ms or sr_resources, or choose grant: configured."
        )
    if need > left:
        raise AdmissionError(
            f"slice {name} needs {need:g} % of the PRBs for {booking.devices} devices and {left:g} % are free; "
            f"{left:g} % could be booked, for {_devices(booking, capacity, left)} devices."
        )
    return Slice(name=name, min=need, dedicated=need if booking.dedicated else 0)


def _devices(booking: Booking, capacity: Capacity, percent: float) -> int:
    """How many of a booking's devices a share keeps."""
    part = whole_prbs(percent, capacity.prbs) / capacity.prbs
    parts = ((booking.up_mbps, capacity.up_mbps), (booking.down_mbps, capacity.down_mbps))
    return min(math.floor(round(part * of / rate, 6)) for rate, of in parts if rate)
