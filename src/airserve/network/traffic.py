"""What the devices of services send over a cell: bytes and seconds, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from airserve import arrivals
from airserve.errors import UserError
from airserve.model import Array
from airserve.network import frame, transport
from airserve.network.cell import Cell
from airserve.network.channels import Channel
from airserve.network.headers import PACKET_BYTES
from airserve.network.jit import njit
from airserve.network.topology import Network

REQUEST = np.dtype(
    [
        ("flow", "i8"),
        ("device", "i8"),  # of the flow
        ("ue", "i8"),  # of the cell
        ("slice", "i8"),
        ("site", "i8"),  # index in the network, or -1: answered on the device
        ("transport", "i8"),  # place in transport.NAMES
        ("sent_s", "f8"),
        ("started_s", "f8"),  # computing on the device
        ("ready_s", "f8"),  # for the radio
        ("up", "i8"),  # bytes
        ("down", "i8"),
        ("site_seconds", "f8"),
    ],
    align=True,
)


MOST_SEGMENTS = 50_000_000  # of a run over TCP: each takes about a hundred bytes of memory
Transport = Literal["stream", "udp", "tcp-warm", "tcp-cold", "tls"]


class TrafficError(UserError, ValueError):
    """A flow that cannot be sent; the message is one sentence for the user."""


def _nothing() -> Array:
    return np.zeros(1)


@dataclass(frozen=True)
class Flow:
    """Work that the devices of one service send over the cell. Arrays are samples, drawn independently per request."""

    name: str
    slice: str
    devices: int
    rate_hz: float  # of each device
    arrival: str = "periodic"  # see arrivals.times
    device_site: str = ""
    device_seconds: Array = field(default_factory=_nothing)  # a queue with one server per device, before the radio
    site: str = ""  # "": answered on the device, no radio
    bytes_up: Array = field(default_factory=_nothing)  # of the application, one message each
    bytes_down: Array = field(default_factory=_nothing)
    site_seconds: Array = field(default_factory=_nothing)  # a queue with the site's cores, shared by all flows
    transport: Transport = "stream"
    ue: str = "full"  # what kind of devices they are: equipment.parse
    carrier: int | None = None  # of the cell, from 1, that its devices are on; none: dealt out by load
    devices_of: str = ""  # another flow, whose devices these are too as far as it has them: a logical channel more
    channel: Channel = field(default_factory=Channel)
    own_bytes: bool = False  # sent whatever the arrival law says of sizes: those of a model's messages

    @property
    def computes_on_device(self) -> bool:
        return self.site == "" or bool(np.any(np.asarray(self.device_seconds) > 0))


def requests(
    network: Network, flows: Sequence[Flow], until_s: float, warm_s: float, seeds: Sequence[np.random.SeedSequence]
) -> Array:
    """All requests of all flows, sent in [0, warm_s + until_s), as REQUEST, in order of when the radio gets them.

    `seeds` has one for each flow, so that one flow's draws do not depend on another's. A trace of arrivals starts
    after the warm-up. Raises `TrafficError` for a flow that cannot be sent.
    """
    drawn_hz = sum(flow.devices * flow.rate_hz for flow in flows if not arrivals.fixed(flow.arrival))
    arrivals.fits(drawn_hz * (warm_s + until_s), "the services together", warm_s + until_s)
    first_ue, parts = 0, [np.zeros(0, REQUEST)]
    for number, (flow, seed) in enumerate(zip(flows, seeds, strict=True)):
        _check(network, flow)
        law, draw = (np.random.default_rng(one) for one in seed.spawn(2))
        from_s = warm_s if arrivals.fixed(flow.arrival) else 0.0
        came = arrivals.draw(flow.arrival, flow.devices, flow.rate_hz, warm_s + until_s - from_s, law)
        device = came.device
        part = np.zeros(len(device), REQUEST)
        part["flow"], part["device"], part["ue"], part["sent_s"] = number, device, first_ue + device, came.at_s + from_s
        part["slice"], part["transport"] = network.slice_index(flow.slice), transport.NAMES.index(flow.transport)
        part["site"] = [site.name for site in network.sites].index(flow.site) if flow.site else -1
        seconds = _drawn(flow.device_seconds, len(part), draw)
        part["started_s"] = queue_starts(part["sent_s"], seconds, device, np.zeros((flow.devices, 1)))
        part["ready_s"] = part["started_s"] + seconds
        for name, samples in (("up", flow.bytes_up), ("down", flow.bytes_down), ("site_seconds", flow.site_seconds)):
            part[name] = _drawn(samples, len(part), draw)
        for name, given in (("up", came.up), ("down", came.down)):
            if flow.own_bytes:
                continue
            if came.scale is not None:
                part[name] = np.maximum(np.rint(part[name] * came.scale), 1)
            if given is not None:
                part[name] = given
        _segments_fit(flow, part)
        parts.append(part)
        first_ue += flow.devices
    together = np.concatenate(parts)
    return together[np.argsort(together["ready_s"], kind="stable")]


def carriers(network: Network, flows: Sequence[Flow]) -> list[int]:
    """The carrier of every device of all flows, from 0: that of its flow, else in turn the one that is filled least.

    A device fills it by its mean bytes a second, both ways, of the resource elements that the carrier has for data.

    >>> from airserve.network.cell import Cell
    >>> from airserve.network.topology import Site, Slice
    >>> two = Network(cells=(Cell(name="hall", carriers=2),), slices=(Slice(name="all"),),
    ...     sites=(Site(name="mast", kind="edge"),))
    >>> carriers(two, [Flow("big", "all", 1, 9.0, carrier=2), Flow("small", "all", 4, 3.0)])
    [1, 0, 0, 0, 0]
    """
    if len(network.carriers) == 1:
        return [0] * sum(flow.devices for flow in flows)
    load, size, found = np.zeros(len(network.carriers)), np.array([_size(cell) for cell in network.carriers]), []
    for flow in sorted(flows, key=lambda one: one.carrier is None):
        each = flow.rate_hz * max(1.0, float(np.mean(flow.bytes_up)) + float(np.mean(flow.bytes_down)))
        for _ in range(flow.devices):
            chosen = int((load / size).argmin()) if flow.carrier is None else flow.carrier - 1
            load[chosen] += each
            found.append((flow.name, chosen))
    return [chosen for flow in flows for name, chosen in found if name == flow.name]


def device_of(flows: Sequence[Flow]) -> list[int]:
    """The device of every flow's every device, numbered as if each had its own: device k of a flow that names another
    is device k of that one. Raises `TrafficError` for a name that is not there.

    >>> video = Flow("video", "a", devices=2, rate_hz=1)
    >>> device_of([video, Flow("alarm", "b", devices=3, rate_hz=1, devices_of="video")])
    [0, 1, 0, 1, 4]
    """
    first, number = {}, 0
    for flow in flows:
        first[flow.name] = number, flow.devices
        number += flow.devices
    found: list[int] = []
    for flow in flows:
        own = first[flow.name][0]
        of, there = first.get(flow.devices_of, (own, 0))
        named = next((one for one in flows if one.name == flow.devices_of), None)
        if flow.devices_of and (named is None or named.devices_of):
            others = [one.name for one in flows if not one.devices_of and one.name != flow.name]
            raise TrafficError(
                f"flow {flow.name} is on the devices of {flow.devices_of!r}, which "
                f"{'does not exist' if named is None else 'has none of its own'}; choose {', '.join(others) or 'none'}."
            )
        found += [of + k if k < there else own + k for k in range(flow.devices)]
    return found


def _size(cell: Cell) -> float:
    """Resource elements for data in a millisecond, both ways."""
    return float(frame.pattern(cell)["elements"].sum(axis=1).mean()) * cell.prbs / cell.slot_ms


def _drawn(samples: Array, n: int, rng: np.random.Generator) -> Array:
    values = np.asarray(samples, np.float64).ravel()
    return rng.choice(values, n) if len(values) else np.zeros(n)


def _check(network: Network, flow: Flow) -> None:
    if flow.slice not in (slices := [s.name for s in network.slices]):
        raise TrafficError(f"flow {flow.name} names slice {flow.slice!r}; the network has {', '.join(slices)}.")
    if flow.carrier is not None and not 1 <= flow.carrier <= len(network.carriers):
        raise TrafficError(
            f"flow {flow.name} is on carrier {flow.carrier}; cell {network.cell.name} has carriers 1 to "
            f"{len(network.carriers)}."
        )
    if flow.site and flow.site not in (sites := [s.name for s in network.sites]):
        raise TrafficError(f"flow {flow.name} names site {flow.site!r}; the network has {', '.join(sites)}.")
    if flow.transport not in transport.NAMES:
        raise TrafficError(f"flow {flow.name} has transport {flow.transport!r}; choose {', '.join(transport.NAMES)}.")
    if flow.devices < 1 or flow.rate_hz <= 0:
        raise TrafficError(f"flow {flow.name} has {flow.devices} devices at {flow.rate_hz:g} Hz; both must be above 0.")
    if flow.site and not all(np.size(b) and np.min(b) >= 1 for b in (flow.bytes_up, flow.bytes_down)):
        raise TrafficError(f"flow {flow.name} goes to {flow.site} and needs bytes_up and bytes_down of 1 or more.")
    if flow.site and (most := max(np.max(flow.bytes_up), np.max(flow.bytes_down))) > arrivals.MOST_BYTES:
        raise TrafficError(f"flow {flow.name} sends {most:g} bytes at once; it may send {arrivals.MOST_BYTES:,}.")
    if any(np.size(t) and np.min(t) < 0 for t in (flow.device_seconds, flow.site_seconds)):
        raise TrafficError(f"flow {flow.name} has compute times below 0 s; give seconds of 0 or more.")


def _segments_fit(flow: Flow, asked: Array) -> None:
    number = int((asked["up"] // PACKET_BYTES + asked["down"] // PACKET_BYTES).sum())
    if flow.transport not in ("stream", "udp") and number > MOST_SEGMENTS:
        raise TrafficError(
            f"flow {flow.name} sends {number:,} segments over {flow.transport}; a run has room for {MOST_SEGMENTS:,}: "
            "lower its bytes, the seconds, devices or rate_hz, or choose `transport: stream`."
        )


@njit
def join(free_s: Array, at_s: float, seconds: float) -> float:
    """When the first of some servers takes a task up, FIFO; `free_s`, when each is free, is moved on.

    >>> free_s = np.zeros(2)
    >>> [join(free_s, at_s=0.0, seconds=3.0) for task in range(3)]
    [0.0, 0.0, 3.0]
    """
    server = free_s.argmin()
    start_s = max(at_s, free_s[server])
    free_s[server] = start_s + seconds
    return float(start_s)


@njit
def queue_starts(at_s: Array, seconds: Array, queue: Array, free_s: Array) -> Array:
    """Start of every task (n,) in FIFO queues: tasks in order of arrival, the queue of each, servers free (q, c).

    >>> queue_starts(np.array([0.0, 1.0]), np.array([3.0, 3.0]), np.array([0, 0]), np.zeros((1, 1)))
    array([0., 3.])
    """
    start_s = np.empty(at_s.size)
    for i in range(at_s.size):
        start_s[i] = join(free_s[queue[i]], at_s[i], seconds[i])
    return start_s
