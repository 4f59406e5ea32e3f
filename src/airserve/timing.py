"""Server-Timing: where a request's time went, as an HTTP header (W3C Server Timing), and its bytes on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TimingError(ValueError):
    """A header that cannot be read; the message is one sentence."""


class Timing(NamedTuple):
    """An entry of the Server-Timing header; `desc` is the site, or for `air` what `parse_air` reads."""

    name: str
    ms: float
    desc: str


class AirBytes(NamedTuple):
    """Where a request and its response lie on a head's connection: half-open byte ranges from its start."""

    port: int  # local TCP port of the head's connection
    up: tuple[int, int]
    down: tuple[int, int]


def format_timing(entries: Sequence[Timing]) -> str:
    """The value of a Server-Timing header (W3C), in milliseconds with three decimals.

    >>> format_timing([Timing("queue", 0.25, "mast"), Timing("compute", 9.8761, "mast")])
    'queue;dur=0.250;desc="mast", compute;dur=9.876;desc="mast"'
    """
    return ", ".join([f'{name};dur={ms:.3f};desc="{desc}"' for name, ms, desc in entries])


def parse_timing(value: str) -> list[Timing]:
    """The entries of a Server-Timing header in order; an entry without `dur` counts 0, as the W3C text says.

    Raises `TimingError` where a duration is no number.

    >>> parse_timing('queue;dur=0.250;desc="mast", air;desc="5000:0-90:0-70";dur=12.000')[1]
    Timing(name='air', ms=12.0, desc='5000:0-90:0-70')
    """
    entries = []
    for part in value.split(","):
        name, *fields = (field.strip() for field in part.split(";"))
        if not name:
            continue
        keyed = {key.strip().lower(): given.strip().strip('"') for key, _, given in (f.partition("=") for f in fields)}
        try:
            entries.append(Timing(name, float(keyed.get("dur") or 0), keyed.get("desc", "")))
        except ValueError:
            raise TimingError(f"Server-Timing entry {part.strip()[:60]!r} has a duration that is no number.") from None
    return entries


def format_air(air: AirBytes) -> str:
    """
    >>> format_air(AirBytes(40001, (0, 900), (0, 300)))
    '40001:0-900:0-300'
    """
    return f"{air.port}:{air.up[0]}-{air.up[1]}:{air.down[0]}-{air.down[1]}"


def parse_air(desc: str) -> AirBytes:
    """The inverse of `format_air`.

    >>> parse_air("40001:0-900:0-300")
    AirBytes(port=40001, up=(0, 900), down=(0, 300))
    """
    try:
        port, up, down = desc.split(":")
        (up0, up1), (down0, down1) = (map(int, part.split("-")) for part in (up, down))
        return AirBytes(int(port), (up0, up1), (down0, down1))
    except ValueError:
        raise TimingError(f"{desc[:60]!r} is not PORT:UP0-UP1:DOWN0-DOWN1.") from None
