"""Standardised quality of service: 5QI of TS 23.501 Table 5.7.4-1, as data in tables/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from airserve.errors import UserError

DEFAULT = 9  # what a slice gets that names none: the usual bearer of the internet


class QosError(UserError, ValueError):
    """A 5QI that is not standardised; the message is one sentence for the user."""


@dataclass(frozen=True)
class Quality:
    """A row: what a QoS flow may expect. Delay is from device to user-plane function, one way."""

    five_qi: int
    resource: str  # GBR | non-GBR | delay-critical
    priority: int  # the lower, the sooner
    delay_budget_ms: float
    core_delay_ms: float  # of it between base station and user-plane function
    error_rate: float
    max_burst_bytes: int | None

    @property
    def radio_budget_ms(self) -> float:
        """What the radio may take."""
        return self.delay_budget_ms - self.core_delay_ms


@cache
def table() -> dict[int, Quality]:
    """All rows by 5QI."""
    text = (files("airserve.network") / "tables" / "ts23501_5_7_4_1.json").read_text("utf-8")
    return {row["5qi"]: Quality(*row.values()) for row in json.loads(text)["rows"]}


def quality(five_qi: int) -> Quality:
    """The row of a 5QI. Raises `QosError`.

    >>> quality(82).priority, quality(82).radio_budget_ms
    (19, 9)
    """
    if five_qi not in (rows := table()):
        raise QosError(f"5QI {five_qi} is not standardised; TS 23.501 has {', '.join(map(str, rows))}.")
    return rows[five_qi]
