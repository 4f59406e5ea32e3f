"""What a network is: cells, slices, sites. A frozen description, read by twin, emulator and live network."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from airserve.network import qos
from airserve.network.cell import Cell, Description, Name
from airserve.network.lattice import places

LEAST_MBPS, MOST_MBPS = 1e-3, 1e6  # of links and rules


def whole_prbs(percent: float, prbs: int) -> int:
    """PRBs of a carrier that a share comes to, rounded down.

    >>> whole_prbs(10, 273), whole_prbs(9, 11)
    (27, 0)
    """
    return int(percent * prbs / 100 + 1e-9)


def least_percent(prbs: int, of: int) -> float:
    """The share, in tenths of a per cent, that comes to so many PRBs of a carrier.

    >>> least_percent(1, of=11), least_percent(28, of=273)
    (9.1, 10.3)
    """
    return ceil(round(1000 * prbs / of, 6)) / 10


class Slice(Description):
    """A share of the cell's PRBs in per cent: RRMPolicyRatio of TS 28.541 4.3.36, with its S-NSSAI."""

    name: Name
    sst: int = Field(1, ge=0, le=255)
    sd: str | None = Field(None, pattern=r"^[0-9A-Fa-f]{6}$")
    dedicated: float = Field(0, ge=0, le=100)
    min: float = Field(0, ge=0, le=100)
    max: float = Field(100, gt=0, le=100)
    five_qi: int | None = None  # TS 23.501 5.7.4: priority, delay budget and error rate
    delay_budget_ms: float | None = Field(None, gt=0)  # in place of the 5QI's; default: the tightest promise in it

    @field_validator("five_qi")
    @classmethod
    def _standardised(cls, value: int | None) -> int | None:
        if value is not None:
            qos.quality(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _min_covers_dedicated(cls, data: Any) -> Any:
        if isinstance(data, dict) and "dedicated" in data and "min" not in data:
            return {**data, "min": data["dedicated"]}
        return data

    @model_validator(mode="after")
    def _order(self) -> Self:
        if not self.dedicated <= self.min <= self.max:
            raise ValueError(
                f"slice {self.name} has dedicated {self.dedicated:g}, min {self.min:g}, max {self.max:g}; "
                "TS 28.541 wants dedicated <= min <= max"
            )
        return self

    @property
    def quality(self) -> qos.Quality:
        """The row of its 5QI.

        >>> Slice(name="control", five_qi=82).quality.error_rate
        0.0001
        """
        return qos.quality(self.five_qi or qos.DEFAULT)

    @property
    def budget_ms(self) -> float:
        """What its bytes may wait: `delay_budget_ms`, else the radio's part of its 5QI's budget."""
        return self.delay_budget_ms or self.quality.radio_budget_ms


class Site(Description):
    """A place that runs Functions. A site of kind device exists once per device."""

    name: Name
    kind: Literal["device", "edge", "cloud"]
    cores: int = Field(1, ge=1, le=1024)
    speed: float = Field(1.0, ge=1e-6, le=1)  # of this machine; a slower site is emulated by padding
    delay_ms: float = Field(0.0, ge=0, le=10_000)  # one way, from the user-plane function
    memory_mb: float | None = Field(None, gt=0)
    rate_mbps: float | None = Field(None, ge=LEAST_MBPS, le=MOST_MBPS)  # of the link, each way; none: no limit
    queue_kb: float | None = Field(None, gt=0, le=1e9)  # at the link, each way; none: no limit

    @model_validator(mode="after")
    def _device_is_at_the_radio(self) -> Self:
        for key in ("delay_ms", "rate_mbps", "queue_kb"):
            if self.kind == "device" and getattr(self, key):
                raise ValueError(
                    f"site {self.name} is a device: it stands at the radio and has no {key}; remove the key"
                )
        if self.queue_kb and not self.rate_mbps:
            raise ValueError(f"site {self.name} has queue_kb and no rate_mbps; a link without a rate has no queue")
        return self


class Rule(Description):
    """What the user-plane function does with a service's requests, in the manner of PFCP (TS 29.244 5.2.1).

    Detect by service, device, slice and destination (a PDR: all that are given must match; the lowest precedence
    that matches holds), forward to a site (FAR; "drop": nowhere), enforce a rate (QER).
    """

    precedence: int = Field(255, ge=0)
    service: Name | None = None
    device: int | None = Field(None, ge=0)  # number within the service
    slice: Name | None = None
    destination: Name | None = None  # site that the device asks
    forward: Name | None = None  # none: where the device asked
    up_mbps: float | None = Field(None, ge=LEAST_MBPS, le=MOST_MBPS)  # maximum bit rate of all that matches together
    down_mbps: float | None = Field(None, ge=LEAST_MBPS, le=MOST_MBPS)
    from_s: float = Field(0, ge=0)  # of the run: when it comes into force
    until_s: float | None = None

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        if self.device is not None and self.service is None:
            raise ValueError(f"a rule names device {self.device} of no service; add `service`")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        says = self.model_dump(exclude={"precedence", "from_s", "until_s"}, exclude_none=True)
        if not says:
            raise ValueError(
                "a rule says nothing; give what it detects (service, device, slice, destination) or what it does "
                "(forward, up_mbps, down_mbps)"
            )
        if self.until_s is not None and self.until_s <= self.from_s:
            raise ValueError(
                f"a rule is in force from_s {self.from_s:g} until_s {self.until_s:g}, which is never; "
                "make until_s the later one, or leave it out"
            )
        return self


class Network(Description):
    """Cells, slices, sites and the rules between them."""

    cells: tuple[Cell, ...] = Field(min_length=1, max_length=57)  # side by side on one carrier
    slices: tuple[Slice, ...] = Field(min_length=1)
    sites: tuple[Site, ...] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _rules_name_what_is_there(self) -> Self:
        served = [site.name for site in self.sites if site.kind != "device"]
        for rule in self.rules:
            for key, names in (("slice", [s.name for s in self.slices]), ("destination", served), ("forward", served)):
                if (name := getattr(rule, key)) is not None and name not in (*names, *["drop"] * (key == "forward")):
                    raise ValueError(f"a rule names {key} {name!r}; there is {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for kind, names in (("slice", [s.name for s in self.slices]), ("site", [s.name for s in self.sites])):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two {kind}s are named {sorted(twice)[0]}; give each its own name")
        for key in ("dedicated", "min"):
            if (total := sum(getattr(s, key) for s in self.slices)) > 100:
                parts = " + ".join(f"{s.name} {getattr(s, key):g}" for s in self.slices if getattr(s, key))
                raise ValueError(
                    f"the slices' {key} shares add up to {total:g} % ({parts}); at most 100 % can be given"
                )
        return self

    @model_validator(mode="after")
    def _one_carrier(self) -> Self:
        names = self.station_names
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two cells are named {sorted(twice)[0]}; give each its own name")
        first = self.cells[0].model_dump(exclude={"name", "trps"})
        for other in self.cells[1:]:
            for key, value in other.model_dump(exclude={"name", "trps"}).items():
                if value != first[key]:
                    raise ValueError(
                        f"cells {self.cells[0].name} and {other.name} have {key} {first[key]} and {value}; cells stand "
                        "side by side on one carrier, so give all the same, or study them one by one"
                    )
        if self.cell.speed_kmh and len(self.carriers) > 1:
            raise ValueError(
                f"speed_kmh {self.cell.speed_kmh:g} moves devices among cells of one carrier, and these have "
                f"{len(self.carriers)}; leave one of the two out"
            )
        if len(names) == 1 and self.cell.speed_kmh:
            raise ValueError(
                f"speed_kmh {self.cell.speed_kmh:g} moves devices from cell to cell, and {names[0]} is alone; leave it "
                "out (the fading of a walk is in the trace), or add cells"
            )
        if len(names) > (most := places(self.cell.scenario)):
            raise ValueError(f"{len(names)} cells are given; the layout of {self.cell.scenario} has {most} places")
        return self

    @model_validator(mode="after")
    def _shares_come_to_a_prb(self) -> Self:
        prbs = min(cell.prbs for cell in self.carriers)
        for one in self.slices:
            for key in ("max", "min", "dedicated"):
                if (share := getattr(one, key)) and whole_prbs(share, prbs) == 0:
                    raise ValueError(
                        f"slice {one.name} of cell {self.cells[0].name}: {key} {share:g} % of {prbs} PRBs is less than "
                        f"one; write at least {least_percent(1, prbs):g}{'' if key == 'max' else ', or 0'}"
                    )
        return self

    @property
    def cell(self) -> Cell:
        """The first cell, with its first carrier; all others are as it is, at other places."""
        return self.carriers[0]

    @property
    def carriers(self) -> tuple[Cell, ...]:
        """The carriers of the first cell, and so of all, as cells of one."""
        return self.cells[0].each

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Of every carrier of every base station, for each is a cell: with a letter where they have several.

        >>> hall = Cell(name="hall", trps=2, carriers=2)
        >>> Network(cells=(hall,), slices=(Slice(name="all"),), sites=(Site(name="mast", kind="edge"),)).cell_names
        ('hall-1-a', 'hall-1-b', 'hall-2-a', 'hall-2-b')
        """
        if (each := len(self.carriers)) == 1:
            return self.station_names
        return tuple(f"{name}-{chr(ord('a') + k)}" for name in self.station_names for k in range(each))

    @property
    def station_names(self) -> tuple[str, ...]:
        """Of all base stations.

        >>> city = Cell(name="city", scenario="umi", trps=3)
        >>> Network(cells=(city,), slices=(Slice(name="all"),), sites=(Site(name="mast", kind="edge"),)).station_names
        ('city-1', 'city-2', 'city-3')
        """
        return tuple(
            f"{cell.name}-{k}" if cell.trps > 1 else cell.name for cell in self.cells for k in range(1, cell.trps + 1)
        )

    @property
    def air(self) -> str:
        """What a request's spans over the radio are named after: the cell, or where there are several, all of them."""
        return self.cells[0].name if len(self.cells) == 1 else "cells"

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def slice_index(self, name: str) -> int:
        return [s.name for s in self.slices].index(name)
