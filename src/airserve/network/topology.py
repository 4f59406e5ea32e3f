"""What a network is: cells, slices, sites. A frozen description, read by twin, emulator and live network."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from airserve import catalog
from airserve.network import qos

Scenario = Literal["umi", "uma", "rma", "inh", "inf-sl", "inf-dl", "inf-sh", "inf-dh"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]

PRB_BY_BANDWIDTH = {  # TS 38.101-1 Table 5.3.2-1, FR1, bandwidth in MHz
    15: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 35: 188, 40: 216, 45: 242, 50: 270},
    30: {5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 35: 92, 40: 106, 45: 119, 50: 133,
         60: 162, 70: 189, 80: 217, 90: 245, 100: 273},
    60: {10: 11, 15: 18, 20: 24, 25: 31, 30: 38, 35: 44, 40: 51, 45: 58, 50: 65,
         60: 79, 70: 93, 80: 107, 90: 121, 100: 135},
}  # fmt: skip


class Description(BaseModel):
    """Frozen, and strict about keys: what is not known is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(Description):
    """A base station and its carrier."""

    name: Name
    scenario: Scenario = "inf-dh"
    carrier_ghz: float = Field(3.5, gt=0.4, lt=71)
    bandwidth_mhz: int = 100
    scs_khz: Literal[15, 30, 60] = 30
    tdd: str = "DDDSU"  # D, S (10 downlink, 2 guard, 2 uplink symbols) and U, one letter a slot
    gnb_ports: int = Field(32, ge=1, le=64)
    ue_antennas: int = Field(4, ge=1, le=8)
    mimo: Literal["su"] = "su"
    slicing: str = "ratio"  # a file of network/slices/
    slicing_window_ms: float = Field(0, ge=0, le=10_000)  # in which min and max hold on average; 0: in every slot
    sr_period_ms: float = Field(20.0, gt=0)  # scheduling-request period of a device
    k2_slots: int = Field(4, ge=1, le=32)  # uplink grant to transmission, TS 38.214 6.1.2.1
    target_bler: float = Field(0.1, gt=0, lt=1)

    @field_validator("tdd")
    @classmethod
    def _pattern(cls, value: str) -> str:
        if not re.fullmatch(r"[DSU]+", value) or "U" not in value or not set(value) & {"D"}:
            raise ValueError("a TDD pattern is made of D, S and U, with at least one D and one U, such as DDDSU")
        return value

    @field_validator("slicing")
    @classmethod
    def _policy(cls, value: str) -> str:
        if value not in catalog.slices:
            raise ValueError(f"no slice policy is named {value!r}; there is {', '.join(catalog.slices)}")
        return value

    @model_validator(mode="after")
    def _bandwidth(self) -> Self:
        known = PRB_BY_BANDWIDTH[self.scs_khz]
        if self.bandwidth_mhz not in known:
            raise ValueError(
                f"bandwidth_mhz {self.bandwidth_mhz} does not exist at {self.scs_khz} kHz; "
                f"TS 38.101-1 has {', '.join(map(str, known))}"
            )
        return self

    @property
    def prbs(self) -> int:
        """
        >>> Cell(name="hall").prbs
        273
        """
        return PRB_BY_BANDWIDTH[self.scs_khz][self.bandwidth_mhz]

    @property
    def slot_ms(self) -> float:
        return 15 / self.scs_khz


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
    speed: float = Field(1.0, gt=0, le=1)  # of this machine; a slower site is emulated by padding
    delay_ms: float = Field(0.0, ge=0, le=10_000)  # one way, from the user-plane function
    memory_mb: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _device_is_at_the_radio(self) -> Self:
        if self.kind == "device" and self.delay_ms:
            raise ValueError(
                f"site {self.name} is a device: it stands at the radio and has no delay_ms; remove the key"
            )
        return self


class Network(Description):
    """Cells, slices and sites."""

    cells: tuple[Cell, ...] = Field(min_length=1, max_length=1)  # one cell for now
    slices: tuple[Slice, ...] = Field(min_length=1)
    sites: tuple[Site, ...] = Field(min_length=1)

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

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def slice_index(self, name: str) -> int:
        return [s.name for s in self.slices].index(name)
