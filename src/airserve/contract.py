"""Deployment, routes, Readings and promises: frozen data that rooms and processes exchange."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from airserve.model import Array, Function

if TYPE_CHECKING:
    from numpy.random import Generator  # which numpy does not load by itself

Kind = Literal["wait", "air", "transit", "queue", "compute"]
Direction = Literal["up", "down", ""]
Word = Literal["kept", "not kept", "too close to call", "too few requests"]
T = TypeVar("T")


@dataclass(frozen=True)
class Promise:
    """What a Service's users are told will hold: latency at a percentile, and accuracy."""

    latency_ms: float
    percentile: float
    max_accuracy_drop: float | None = None

    @property
    def least(self) -> int:
        """Requests that a judgement needs: ten expected above the percentile.

        >>> Promise(latency_ms=50, percentile=99).least
        1000
        """
        return int(np.ceil(round(10 / (1 - self.percentile / 100), 6)))


@dataclass(frozen=True)
class Span:
    """A part of a request's latency: its kind, its direction ("" at a site), and the site or cell it is spent at."""

    kind: Kind
    direction: Direction
    site: str


@dataclass(frozen=True)
class Readings:
    """The requests of one Service as columns; the same in twin, emulator and live. A row's spans add up to its latency.

    `sent_s` (n,) is the intended send time from the start of the run, `device` (n,) counts from 0 within the service,
    `ms` (n, len(spans)) is NaN where a request was not answered.
    """

    service: str
    spans: tuple[Span, ...]
    sent_s: Array
    device: Array
    ms: Array

    @property
    def latency_ms(self) -> Array:
        """Shape (n,); infinite where a request was not answered."""
        total = self.ms.sum(axis=1)
        return np.where(np.isnan(total), np.inf, total)

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.latency_ms).sum())


@dataclass(frozen=True)
class Judgement:
    """A percentile with its interval, and whether the promise held."""

    value_ms: float
    interval_ms: tuple[float, float]
    requests: int
    word: Word


def judge(latency_ms: Array, sent_s: Array, promise: Promise, rng: Generator, block_s: float = 1.0) -> Judgement:
    """The promise's percentile with a 95 % interval, bootstrapped by blocks of time.

    Requests of a moment hang together, so whole blocks are drawn again (Künsch 1989), not requests.
    """
    n = len(latency_ms)
    if n == 0:
        return Judgement(float("inf"), (0.0, float("inf")), 0, "too few requests")
    block = (sent_s // block_s).astype(int)
    order = np.argsort(block, kind="stable")
    groups = np.split(latency_ms[order], np.flatnonzero(np.diff(block[order])) + 1)
    draws = [
        percentile(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]), promise.percentile)
        for _ in range(400)
    ]
    low, high = percentile(np.array(draws), 2.5), percentile(np.array(draws), 97.5)
    word: Word = (
        "kept" if high <= promise.latency_ms else "not kept" if low > promise.latency_ms else "too close to call"
    )
    return Judgement(
        percentile(latency_ms, promise.percentile),
        (low, high),
        n,
        word if n >= promise.least else "too few requests",
    )


def percentile(values: Array, q: float) -> float:
    """The q-th percentile; infinite values (requests not answered) rank last.

    >>> percentile(np.array([1.0, 2.0, 3.0, np.inf]), 50)
    2.5
    """
    ordered = np.sort(values)
    at = (len(ordered) - 1) * q / 100
    low, high = ordered[int(np.floor(at))], ordered[int(np.ceil(at))]
    return float(low if low == high else low + (high - low) * (at - np.floor(at)))


@dataclass(frozen=True)
class Route:
    """Where a head sends its output: an Open Inference Protocol V2 model at an address.

    `source` is the address to bind before connecting: on the emulated air it names the device. Where an endpoint has
    several, `weight` is a route's share of the requests against the others' (0: in reserve, asked when no other can
    be), or with `mirror` the part of all requests (0 to 1) of which it gets a copy whose answer nobody waits for.
    """

    host: str
    port: int
    model: str
    source: str = ""
    compress: bool = False  # zstd, as HTTP Content-Encoding
    weight: float = 1.0
    mirror: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A name that a site answers to: Functions run in order, then, where there is a route, the rest of the chain."""

    name: str
    functions: tuple[Function, ...]
    next: Route | None = None
    version: str = "1"  # a deployment replaces endpoints, it does not stack versions; a service of its own may
    aliases: tuple[str, ...] = ()  # other names of the version
    also: tuple[Route, ...] = ()  # beside `next`: places that do the same, or that are tried out


@dataclass(frozen=True)
class SiteProcess:
    """One process of a site: the site's own, or for a site of kind device the process of one device."""

    site: str
    host: str
    port: int
    cores: int
    endpoints: tuple[Endpoint, ...]
    device: int = -1  # address index of the device, -1 for edge and cloud

    @property
    def key(self) -> str:
        return self.site if self.device < 0 else f"{self.site}-{self.device}"


@dataclass(frozen=True)
class AirSite:
    """A destination behind the user-plane function: the relay listens at one address and connects to the other."""

    name: str
    host: str
    port: int
    upstream_host: str
    upstream_port: int
    delay_ms: float


@dataclass(frozen=True)
class Air:
    """The byte relay: devices by source address, sites by destination, and the radio between (as JSON of a Network)."""

    network: dict[str, Any]
    devices: tuple[str, ...]  # source addresses: of a device, or of each of its services; the MAC's channels
    slice_of: tuple[int, ...]  # index of each one's slice
    sites: tuple[AirSite, ...]
    seed: int
    tightest_ms: float  # the tightest promise: a run whose p99 release lateness passes 10 % of it is invalid
    kinds: tuple[str, ...] = ()  # what each device is on the radio; none: all full
    device_of: tuple[int, ...] = ()  # number of each one's device; none given: each has its own
    channels: tuple[dict[str, Any], ...] = ()  # of each, network.channels.Channel


@dataclass(frozen=True)
class Asker:
    """The devices of one Service and how they ask, for the driver."""

    service: str
    model: str  # name in the URL
    samples: str  # path of an .npz file
    reference: str  # path of the original Model: its answers are compared, and are right where there are no labels
    addresses: tuple[str, ...]  # one per device: source on the air, or host of its own process
    air: tuple[int, ...]  # index of each device in Air.devices
    rate_hz: float
    arrival: str
    encoded: bool  # send `Samples.encoded` (a JPEG) and not the raw tensor
    to: Literal["device", "air"]  # the device's own process, or a site over the air
    site: str  # the site asked, or the site of the tail; "" when the device answers alone
    device_site: str
    promise: Promise
    compress: bool = False  # the driver's own requests, as zstd


@dataclass(frozen=True)
class Deployment:
    """What is wanted: processes, the air between them, and who asks."""

    name: str
    processes: tuple[SiteProcess, ...]
    air: Air | None
    askers: tuple[Asker, ...]


def to_plain(value: Any) -> Any:
    """A dataclass as plain data that JSON can carry."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], value: Any) -> T:
    """The inverse of `to_plain`, led by the type hints of the dataclass.

    >>> from_plain(Promise, to_plain(Promise(50, 99))) == Promise(50, 99)
    True
    """
    return typing.cast(T, _read(kind, value))


def _read(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _read(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        inner = args if args[-1:] != (...,) else (args[0],) * len(value)
        return tuple(_read(one, item) for one, item in zip(inner, value, strict=True))
    if origin in (types.UnionType, typing.Union):
        chosen = next(arg for arg in args if arg is not type(None))
        return None if value is None else _read(chosen, value)
    if origin is np.ndarray:
        return np.asarray(value)
    return Path(value) if hint is Path else value
