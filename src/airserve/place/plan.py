"""Candidate and Plan: what may be chosen, what was, what is predicted, and why the others lost."""

from __future__ import annotations

from dataclasses import dataclass

from airserve.contract import Promise
from airserve.model import Array, Function


@dataclass(frozen=True)
class Candidate:
    """One way to serve a Service: variant, cut, encoding and sites, with what it costs in bytes and seconds.

    `cut` is "none" (the device answers alone), "input" (the device sends its input) or the name of a tensor.
    Seconds are samples measured on this machine and scaled by the site's speed; bytes are whole HTTP messages,
    headers included, one per sample. All arrays are one-dimensional.
    """

    service: str
    reference: str  # of the Model in the registry, variant included
    variant: str
    cut: str
    encoding: str  # "raw" | "int8" for a cut; "raw" | "jpeg" for an input; "" when nothing is sent
    device_site: str
    site: str  # "" when the device answers alone
    device_functions: tuple[Function, ...]
    site_functions: tuple[Function, ...]
    device_seconds: Array
    site_seconds: Array
    bytes_up: Array
    bytes_down: Array
    compress: bool  # zstd as Content-Encoding of what goes up
    metric: str  # of answers.judge; "" when the Model has no samples
    score: float | None
    before: float | None  # the fp32 parent's score by the same metric
    scored: int  # rows behind the score

    @property
    def sites(self) -> tuple[str, ...]:
        if self.cut == "none":
            return (self.device_site,)
        return (self.site,) if self.cut == "input" else (self.device_site, self.site)

    @property
    def label(self) -> str:
        if self.cut == "none":
            return f"{self.variant} on {self.device_site} alone"
        sent = f"{self.encoding} + zstd" if self.compress else self.encoding
        if self.cut == "input":
            return f"send the input ({sent}), {self.variant} on {self.site}"
        return f"{self.variant} cut at {self.cut} ({sent}), {self.device_site} + {self.site}"


@dataclass(frozen=True)
class RunnerUp:
    """A Candidate that lost, and why."""

    candidate: Candidate
    predicted_ms: float
    predicted_interval_ms: tuple[float, float]
    judged_by: str  # "twin", or "bound" where a closed-form lower bound already refused it
    cost: float
    why: str
    gain_ms: float | None  # the chosen one's prediction less this one's; None where there is none


@dataclass(frozen=True)
class Choice:
    """What a Plan decides for one Service, and what it predicts."""

    service: str
    promise: Promise
    chosen: Candidate
    predicted_ms: float
    predicted_interval_ms: tuple[float, float]
    cost: float
    kept: bool  # with the headroom on demand
    why: str
    runners_up: tuple[RunnerUp, ...]
    max_devices: int  # until the promise breaks, the others as they are
    binds: str  # what binds there
    capacity: tuple[tuple[int, float, float, float], ...]  # devices, percentile in ms, low, high
    refused: tuple[str, ...] = ()  # variants refused before any simulation, and why


@dataclass(frozen=True)
class Stated:
    """What a Plan predicts of a Service that states its sizes and has a promise: there is nothing to choose."""

    service: str
    promise: Promise
    predicted_ms: float
    predicted_interval_ms: tuple[float, float]
    kept: bool  # with the headroom on demand


@dataclass(frozen=True)
class Plan:
    """For every Service its Choice; the slice shares predicted; nothing kept means `limits` says what would free it."""

    description: str  # digest of the file planned for
    choices: tuple[Choice, ...]
    shares_up: tuple[float, ...]  # of the PRBs, per slice in the network's order
    shares_down: tuple[float, ...]
    headroom: float
    seed: int
    seconds: float  # that planning took
    limits: tuple[str, ...] = ()  # for each Service without a plan: the limit that binds, what would free it
    stated: tuple[Stated, ...] = ()

    @property
    def kept(self) -> bool:
        return all(choice.kept for choice in self.choices) and all(one.kept for one in self.stated)
