"""When devices ask, and with how many bytes where the law says so: one law for the twin and for the driver.

`periodic`, `poisson`, `bursts`, `ftp3`, `xr`, each with parameters after commas (`bursts,on_s=1,off_s=4`), or
`trace: FILE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from airserve.errors import UserError
from airserve.model import Array

CLOCK_ERROR_PPM = 20.0  # standard deviation of a device's crystal
JITTER = 0.05  # of a period, uniform to either side: without it phases freeze against TDD and scheduling requests
PARAMETERS: dict[str, dict[str, float]] = {
    "periodic": {},
    "poisson": {},
    "bursts": {"on_s": 1.0, "off_s": 4.0},  # mean lengths
    "ftp3": {"bytes": 500_000},  # of a file: TR 36.889 A.1.1, TR 38.802 A.2.1
    "xr": {"jitter_ms": 2.0, "size_std": 0.105},  # TR 38.838 5.1.1: frames that an encoder and a network have passed
}
MOST_REQUESTS = 10_000_000  # of a run: each takes about a kilobyte of memory
MOST_BYTES = 10**11  # of a message
LONGEST_S = 1e7  # that a run may last
RANGES = {  # of the parameters, ends included
    "on_s": (1e-3, LONGEST_S),
    "off_s": (1e-3, LONGEST_S),
    "bytes": (1.0, float(MOST_BYTES)),
    "jitter_ms": (0.0, math.inf),  # and below a period
    "size_std": (0.0, 1.0),
}
XR_JITTER_MOST = 2.0  # standard deviations to either side
XR_SIZE_RANGE = (0.5, 1.5)  # of the mean
TRACE_COLUMNS = ("arrival_s", "bytes_up", "bytes_down")


class ArrivalError(UserError, ValueError):
    """An arrival law that cannot be followed; one sentence for the user."""


@dataclass(frozen=True)
class Arrivals:
    """Requests in order of sending: when, by which device, and the bytes that the law gives. Arrays are (n,)."""

    at_s: Array
    device: Array
    up: Array | None = None  # bytes, in place of the service's own
    down: Array | None = None
    scale: Array | None = None  # by which to multiply the service's bytes

    def __getitem__(self, rows: Array) -> Arrivals:
        parts = (self.at_s, self.device, self.up, self.down, self.scale)
        return Arrivals(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


def times(arrival: str, devices: int, rate_hz: float, until_s: float, rng: Generator) -> tuple[Array, Array]:
    """Send times in [0, until_s) in order, shape (n,), and the device of each, shape (n,): `draw` without bytes.

    >>> at, device = times("periodic", devices=4, rate_hz=5, until_s=10, rng=np.random.default_rng(1))
    >>> len(at) in range(196, 205), bool((np.diff(at) >= 0).all()), int(device.max())
    (True, True, 3)
    """
    drawn = draw(arrival, devices, rate_hz, until_s, rng)
    return drawn.at_s, drawn.device


def content(arrival: str) -> str:
    """The text of the file of a law `trace: FILE`; of others none. Raises `ArrivalError`."""
    if not fixed(arrival):
        return ""
    path = _file(arrival)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArrivalError(f"the trace {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ArrivalError(f"the trace {path} is not a text file; it is `seconds[,device]` a line.") from None


def draw(arrival: str, devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    """The requests of `devices` in [0, until_s), at `rate_hz` each on average. Raises `ArrivalError`.

    `periodic`: every device has a random phase, a clock error and a jitter. `poisson`: memoryless. `bursts`: each
    device is on and off for exponential times (means `on_s`, `off_s`) and memoryless while on. `ftp3`: FTP model 3,
    memoryless files of `bytes` down. `xr`: frames with a jitter and sizes both of a truncated normal law.
    `trace: FILE`: lines of `seconds[,device]`; or with a first line that names columns arrival_s, bytes_up,
    bytes_down and, where wanted, device.
    """
    law, given = parse(arrival)
    if law == "trace":
        drawn = _trace(arrival, devices)
        if (first_s := drawn.at_s.min()) >= until_s:
            raise ArrivalError(
                f"the first request of the trace {_file(arrival)} comes at {first_s:,.12g} s and the run ends at "
                f"{until_s:,.12g} s; write times that begin at 0, or let the run last longer."
            )
        drawn = drawn[drawn.at_s < until_s]
    else:
        fits(devices * rate_hz * until_s, f"{devices} devices at {rate_hz:g} Hz", until_s)
        drawn = LAWS[law](given, devices, rate_hz, until_s, rng)
    return drawn[np.argsort(drawn.at_s, kind="stable")]


def fits(number: float, who: str, until_s: float) -> None:
    """Raise `ArrivalError` where a run is too long, or has no room for so many requests of `who` in its seconds."""
    if not until_s <= LONGEST_S:
        raise ArrivalError(f"the run would last {until_s:g} s; it may last {LONGEST_S:,.0f} s: lower its seconds.")
    if number > MOST_REQUESTS:
        raise ArrivalError(
            f"{who} send about {number:,.0f} requests in {until_s:g} s; a run has room for {MOST_REQUESTS:,}: lower "
            "the seconds, devices or rate_hz."
        )


def begins_s(arrival: str, devices: int) -> float:
    """When the first request of a trace comes; 0 for a law. Raises `ArrivalError` as `draw`."""
    return float(_trace(arrival, devices).at_s.min()) if fixed(arrival) else 0.0


def fixed(arrival: str) -> bool:
    """Whether the requests themselves are given: no rate and no number of devices changes how many there are.

    >>> fixed("trace: day.csv"), fixed("poisson")
    (True, False)
    """
    return arrival.startswith("trace:")


def parse(arrival: str) -> tuple[str, dict[str, float]]:
    """The law and its parameters. Raises `ArrivalError`.

    >>> parse("bursts,on_s=2")
    ('bursts', {'on_s': 2.0, 'off_s': 4.0})
    """
    if fixed(arrival):
        return "trace", {}
    law, *settings = arrival.split(",")
    if law not in PARAMETERS:
        raise ArrivalError(f"arrival {law!r} is unknown; choose {', '.join(PARAMETERS)} or `trace: FILE`.")
    given = dict(PARAMETERS[law])
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            given[key.strip()] = value = float(text)
        except ValueError:
            value = -1.0
        if key.strip() not in PARAMETERS[law] or not (math.isfinite(value) and value > 0):
            can = ", ".join(f"{name}={default:g}" for name, default in PARAMETERS[law].items()) or "none"
            raise ArrivalError(f"arrival {law} has no parameter {setting!r}; it has {can}, each above 0.")
        least, most = RANGES[key.strip()]
        if not least <= value <= most:
            raise ArrivalError(f"arrival {law} has {setting.strip()}; from {least:g} to {most:g} is wanted.")
    return law, given


def _periodic(_: dict[str, float], devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    at, device, period_s = _grid(devices, rate_hz, until_s, rng)
    return _inside(at + rng.uniform(-JITTER, JITTER, at.shape) * period_s, device, until_s)


def _grid(devices: int, rate_hz: float, until_s: float, rng: Generator) -> tuple[Array, Array, Array]:
    """Ticks of every device's clock, the device of each, and its period in seconds."""
    period_s = (1 + CLOCK_ERROR_PPM * 1e-6 * rng.standard_normal(devices)) / rate_hz
    number = np.arange(int(np.ceil(until_s * rate_hz * 1.01)) + 1)
    phase_s = rng.uniform(0, 1, devices) * period_s
    grid = phase_s[:, None] + number[None, :] * period_s[:, None]
    return grid.ravel(), np.repeat(np.arange(devices), len(number)), np.repeat(period_s, len(number))


def _inside(at: Array, device: Array, until_s: float) -> Arrivals:
    inside = (at >= 0) & (at < until_s)
    return Arrivals(at[inside], device[inside])


def _poisson(_: dict[str, float], devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    counts = rng.poisson(rate_hz * until_s, devices)
    return Arrivals(rng.uniform(0, until_s, counts.sum()), np.repeat(np.arange(devices), counts))


def _bursts(given: dict[str, float], devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    on_s, off_s = given["on_s"], given["off_s"]
    peak_hz = rate_hz * (on_s + off_s) / on_s
    at, device = [np.zeros(0)], [np.zeros(0, np.int64)]
    for k in range(devices):
        now_s, on = 0.0, rng.random() < on_s / (on_s + off_s)
        while now_s < until_s:
            end_s = now_s + rng.exponential(on_s if on else off_s)
            if on:
                part = rng.uniform(now_s, end_s, rng.poisson(peak_hz * (end_s - now_s)))
                at.append(part)
                device.append(np.full(len(part), k))
            now_s, on = end_s, not on
    return _inside(np.concatenate(at), np.concatenate(device), until_s)


def _ftp3(given: dict[str, float], devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    files = _poisson(given, devices, rate_hz, until_s, rng)
    return Arrivals(files.at_s, files.device, down=np.full(len(files.at_s), given["bytes"]))


def _xr(given: dict[str, float], devices: int, rate_hz: float, until_s: float, rng: Generator) -> Arrivals:
    if given["jitter_ms"] >= 1e3 / rate_hz:
        raise ArrivalError(
            f"arrival xr has jitter_ms={given['jitter_ms']:g} and a period of {1e3 / rate_hz:g} ms, 1 of {rate_hz:g} "
            "a second; a jitter below the period is wanted."
        )
    at, device, _ = _grid(devices, rate_hz, until_s, rng)
    jitter = _truncated(len(at), -XR_JITTER_MOST, XR_JITTER_MOST, rng)
    frames = _inside(at + given["jitter_ms"] / 1e3 * jitter, device, until_s)
    low, high = ((edge - 1) / given["size_std"] for edge in XR_SIZE_RANGE)
    size = 1 + given["size_std"] * _truncated(len(frames.at_s), low, high, rng)
    return Arrivals(frames.at_s, frames.device, scale=size)


def _truncated(n: int, low: float, high: float, rng: Generator) -> Array:
    """Standard normal numbers between two bounds, by drawing again those outside."""
    x = rng.standard_normal(n)
    while (outside := (x < low) | (x > high)).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return x


LAWS: dict[str, Callable[[dict[str, float], int, float, float, Generator], Arrivals]] = {
    "periodic": _periodic,
    "poisson": _poisson,
    "bursts": _bursts,
    "ftp3": _ftp3,
    "xr": _xr,
}


def _file(arrival: str) -> Path:
    """Of a trace, in full: a path that is relative is so to the working directory."""
    return Path(arrival.removeprefix("trace:").strip()).absolute()


def _trace(arrival: str, devices: int) -> Arrivals:
    path, lines = _file(arrival), content(arrival).splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names = [name.strip() for name in numbered[0][1].split(",")] if numbered else []
    sized = "arrival_s" in names
    if sized:
        if missing := [name for name in TRACE_COLUMNS if name not in names]:
            raise ArrivalError(f"the trace {path} lacks the column {missing[0]}; it has {', '.join(names)}.")
        numbered = numbered[1:]
    if not numbered:
        raise ArrivalError(f"the trace {path} has no requests; write a line of `seconds[,device]` for each.")
    columns: dict[str, list[float]] = {name: [] for name in (*TRACE_COLUMNS, "device")}
    for i, (number, line) in enumerate(numbered):
        cells = line.split(",")
        wanted = names if sized else ["arrival_s", "device"][: max(len(cells), 1)]
        try:
            row = {name: float(cell) for name, cell in zip(wanted, cells, strict=True)}
        except ValueError:
            form = ",".join(names) if sized else "seconds[,device]"
            raise ArrivalError(
                f"the trace {path}, line {number}: {line.strip()[:40]!r} is not `{form}`; is the file cut short?"
            ) from None
        row.setdefault("device", i % devices)
        if not all(math.isfinite(value) and value >= 0 for value in row.values()):
            raise ArrivalError(f"the trace {path}, line {number}, has a negative number or one that is none: {line!r}.")
        if row["device"] not in range(devices):
            raise ArrivalError(
                f"the trace {path}, line {number}, has device {row['device']:g}, outside 0 to {devices - 1}."
            )
        for name in columns.keys() & row.keys():
            columns[name].append(row[name])
    at, up, down, device = (np.array(columns[name]) for name in (*TRACE_COLUMNS, "device"))
    if sized and ((up < 1).any() or (down < 1).any()):
        raise ArrivalError(f"the trace {path} has a request of 0 bytes; give 1 or more in both directions.")
    if sized and (most := max(up.max(), down.max())) > MOST_BYTES:
        raise ArrivalError(f"the trace {path} has a request of {most:g} bytes; one has at most {MOST_BYTES:,}.")
    return Arrivals(at, device.astype(np.int64), *((up, down) if sized else (None, None)))
