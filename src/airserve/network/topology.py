"""What a network is: cells, slices, sites. A frozen description, read by twin, emulator and live network."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airserve import catalog
from airserve.network import qos
from airserve.network.lattice import places
from airserve.network.presets import PRESETS, Preset

Scenario = Literal["umi", "uma", "rma", "inh", "inf-sl", "inf-dl", "inf-sh", "inf-dh"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]


def _resource_blocks(frequency_range: str) -> dict[int, dict[int, int]]:
    text = (files("airserve.network") / "tables" / "ts38101_5_3_2_1.json").read_text("utf-8")
    return {
        int(scs_khz): {int(mhz): prbs for mhz, prbs in by_bandwidth.items()}
        for scs_khz, by_bandwidth in json.loads(text)[frequency_range].items()
    }


PRB_BY_BANDWIDTH = _resource_blocks("fr1")  # by subcarrier spacing in kHz and bandwidth in MHz
PRB_BY_BANDWIDTH_FR2 = _resource_blocks("fr2")
FR1_GHZ, FR2_GHZ = (0.41, 7.125), (24.25, 71.0)  # TS 38.104 Table 5.1-1
SLOT_SYMBOLS = 14
LEAST_SYMBOLS = 4  # of a direction in a slot, so that control, DM-RS and data find room


def resource_blocks(carrier_ghz: float, scs_khz: int) -> dict[int, int]:
    """PRBs by bandwidth in MHz at a carrier and subcarrier spacing; empty where the spacing carries no data there.

    >>> resource_blocks(3.5, 30)[100], resource_blocks(28.0, 120)[100], resource_blocks(3.5, 120)
    (273, 66, {})
    """
    table = PRB_BY_BANDWIDTH if carrier_ghz <= FR1_GHZ[1] else PRB_BY_BANDWIDTH_FR2
    return table.get(scs_khz, {})


class Description(BaseModel):
    """Frozen, and strict about keys: what is not known is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Carrier(Description):
    """What one of a base station's carriers has of its own; all else is the cell's."""

    carrier_ghz: float | None = Field(None, ge=FR1_GHZ[0], le=FR2_GHZ[1])
    bandwidth_mhz: int | None = None
    scs_khz: Literal[15, 30, 60, 120] | None = None
    duplex: Literal["tdd", "fdd"] | None = None
    tdd: str | None = Field(None, max_length=160)
    special: tuple[int, int, int] | None = None
    allocation: Literal[0, 1] | None = None
    k2_slots: int | None = Field(None, ge=1, le=32)


class Cell(Description):
    """A base station and its carriers; `trps` of them side by side, with names that end in their number."""

    name: Name
    trps: int = Field(1, ge=1, le=57)
    carriers: (
        Annotated[int, Field(ge=1, le=16)] | Annotated[tuple[Carrier, ...], Field(min_length=1, max_length=16)]
    ) = 1  # so many alike at each base station, or what each has of its own; a device is on one of them
    scenario: Scenario = "inf-dh"
    carrier_ghz: float = Field(3.5, ge=FR1_GHZ[0], le=FR2_GHZ[1])
    bandwidth_mhz: int = 100
    scs_khz: Literal[15, 30, 60, 120] = 30
    duplex: Literal["tdd", "fdd"] = "tdd"
    tdd: str = Field("DDDSU", max_length=160)  # downlink, special and uplink slots; of no meaning to an fdd cell
    special: tuple[int, int, int] = (10, 2, 2)  # symbols of an S slot: down, guard, up
    gnb_ports: int = Field(32, ge=1, le=64)
    ue_antennas: int = Field(4, ge=1, le=8)
    mimo: Literal["su", "mu"] = "su"  # mu: several devices on the same PRBs
    radio_parameters: Preset = "srsran"  # presets.py: sets what of the keys below is not given
    slicing: str = "ratio"  # a file of network/slices/
    slicing_window_ms: float = Field(0, ge=0, le=10_000)  # in which min and max hold on average; 0: in every slot
    grant: Literal["sr", "configured"] = "sr"  # configured: devices may send in any uplink slot without asking
    sr_period_ms: float = Field(20.0, gt=0)  # scheduling-request period of a device
    sr_resources: int = Field(144, ge=1, le=3276)  # devices that may ask in one uplink slot: 12 shifts of 12 PRBs
    allocation: Literal[0, 1] = 1  # what a grant can name, TS 38.214 5.1.2.2: 0 whole groups of PRBs, 1 one row of them
    rbg_config: Literal[1, 2] = 1  # size of these groups: rbg-Size of TS 38.331, Table 5.1.2.2.1-1
    buffer_status: Literal["short", "long", "exact"] = "short"  # reports: 32 levels, 256, or bytes
    p0_dbm: float = Field(-76.0, ge=-202, le=24)  # uplink power control, TS 38.213 7.1.1; of a PRB at 15 kHz
    alpha: float = Field(1.0, ge=0, le=1)  # part of the path loss that it makes up for
    always_on: bool = True  # devices stay connected, however long they are silent; else RRC states and random access
    inactivity_ms: float = Field(10_000.0, gt=0)  # without traffic until a connection is released
    inactive_ms: float = Field(0.0, ge=0)  # from then on in RRC_INACTIVE, until RRC_IDLE
    paging_cycle_ms: float = Field(1280.0, gt=0, le=2560)
    random_access: Literal["4-step", "2-step"] = "4-step"
    prach_period_ms: float = Field(10.0, gt=0, le=160)  # TS 38.211 6.3.3.2
    drx_cycle_ms: float = Field(0.0, ge=0, le=10_240)  # 0: devices listen all the time while connected
    drx_on_ms: float = Field(10.0, gt=0)  # of a cycle
    drx_inactivity_ms: float = Field(100.0, gt=0)  # without traffic until a device sleeps between on-durations
    reference_signals: bool = True  # SSB, CSI-RS, tracking and PRACH take resource elements
    k2_slots: int = Field(4, ge=1, le=32)  # uplink grant to transmission, TS 38.214 6.1.2.1
    ue_capability: Literal[1, 2] = 1  # processing times of devices, TS 38.214 5.3 and 6.4
    target_bler: float = Field(0.1, gt=0, lt=1)
    speed_kmh: float = Field(0.0, ge=0, le=120)  # of devices that walk from cell to cell; 0: they stay where they are
    handover_offset_db: float = Field(3.0, ge=-15, le=15)  # event A3, TS 38.331 5.5.4.4
    handover_hysteresis_db: float = Field(1.0, ge=0, le=15)
    time_to_trigger_ms: float = Field(160.0, ge=0, le=5120)
    interruption_ms: float = Field(50.0, ge=0, le=2000)  # of a handover, TS 38.133 6.1.1

    @model_validator(mode="before")
    @classmethod
    def _parameters(cls, data: Any) -> Any:
        if isinstance(data, dict) and (name := data.get("radio_parameters")) in list(PRESETS):
            return {**PRESETS[name], **data}
        return data

    @field_validator("special")
    @classmethod
    def _fills_a_slot(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 0 or sum(value) != SLOT_SYMBOLS:
            raise ValueError(
                f"special {list(value)} gives the symbols down, guard and up of an S slot, which are 14 together, "
                "such as [10, 2, 2]"
            )
        return value

    @field_validator("slicing")
    @classmethod
    def _policy(cls, value: str) -> str:
        if value not in catalog.slices:
            raise ValueError(f"no slice policy is named {value!r}; there is {', '.join(catalog.slices)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fdd_has_no_pattern(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("duplex") == "fdd":
            pattern = data.get("tdd", (default := cls.model_fields["tdd"].default))
            if pattern != default:
                raise ValueError(f"an fdd cell has both directions in every slot; remove tdd: {pattern}")
        return data

    @model_validator(mode="after")
    def _both_directions(self) -> Self:
        if self.duplex == "fdd":
            return self
        if not re.fullmatch(r"[DSU]+", self.tdd):
            raise ValueError(f"tdd {self.tdd} is not a pattern of D, S and U, one letter a slot, such as DDDSU")
        for way, i, letter in (("downlink", 0, "D"), ("uplink", 1, "U")):
            if not any(symbols[i] >= LEAST_SYMBOLS for symbols in self.symbols):
                raise ValueError(
                    f"tdd {self.tdd} has no slot in which {'devices' if i else 'the base station'} could send data; "
                    f"every service needs the {way}: add {letter}, such as in DDDSU"
                )
        return self

    @model_validator(mode="after")
    def _bandwidth(self) -> Self:
        if FR1_GHZ[1] < self.carrier_ghz < FR2_GHZ[0]:
            raise ValueError(
                f"carrier_ghz {self.carrier_ghz:g} lies in no frequency range of NR; FR1 is {FR1_GHZ[0]:g} to "
                f"{FR1_GHZ[1]:g} GHz, FR2 {FR2_GHZ[0]:g} to {FR2_GHZ[1]:g} GHz"
            )
        known, clause = resource_blocks(self.carrier_ghz, self.scs_khz), f"TS 38.101-{self.frequency_range}"
        if not known:
            spacings = [khz for khz in (15, 30, 60, 120) if resource_blocks(self.carrier_ghz, khz)]
            raise ValueError(
                f"scs_khz {self.scs_khz} carries no data at {self.carrier_ghz:g} GHz; {clause} has "
                f"{', '.join(map(str, spacings))} kHz there"
            )
        if self.bandwidth_mhz not in known:
            raise ValueError(
                f"bandwidth_mhz {self.bandwidth_mhz} does not exist at {self.scs_khz} kHz; "
                f"{clause} has {', '.join(map(str, known))}"
            )
        if self.ue_capability == 2 and self.scs_khz == 120:
            raise ValueError("ue_capability 2 does not exist at 120 kHz (TS 38.214 Table 5.3-2); leave the key out")
        return self

    @model_validator(mode="after")
    def _sleep(self) -> Self:
        if self.drx_cycle_ms and not self.drx_on_ms < self.drx_cycle_ms:
            raise ValueError(
                f"drx_on_ms {self.drx_on_ms:g} fills the drx_cycle_ms of {self.drx_cycle_ms:g}: "
                "a device would never sleep; make the cycle longer, or leave both out"
            )
        if not self.always_on and self.drx_cycle_ms >= self.inactivity_ms:
            raise ValueError(
                f"drx_cycle_ms {self.drx_cycle_ms:g} is no shorter than inactivity_ms {self.inactivity_ms:g}, "
                "after which the connection is gone; make it shorter"
            )
        return self

    @model_validator(mode="after")
    def _carriers_can_be(self) -> Self:
        if isinstance(self.carriers, tuple):
            for number, one in enumerate(self.carriers, 1):
                try:
                    self._carrier(one)
                except ValidationError as error:
                    reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"carrier {number} of cell {self.name}: {reason}") from None
        return self

    def _carrier(self, one: Carrier) -> Cell:
        given, own = self.model_dump(exclude_unset=True, exclude={"carriers"}), one.model_dump(exclude_none=True)
        if own.get("duplex", self.duplex) == "fdd":
            given = {key: value for key, value in given.items() if key not in ("tdd", "special")}
        return Cell.model_validate({**given, **own})

    @property
    def each(self) -> tuple[Cell, ...]:
        """Its carriers, as cells of one carrier.

        >>> [one.prbs for one in Cell(name="hall", carriers=[{}, {"bandwidth_mhz": 40}]).each]
        [273, 106]
        """
        if isinstance(self.carriers, tuple):
            return tuple(self._carrier(one) for one in self.carriers)
        return (self if self.carriers == 1 else self.model_copy(update={"carriers": 1}),) * self.carriers

    @property
    def frequency_range(self) -> Literal[1, 2]:
        return 1 if self.carrier_ghz <= FR1_GHZ[1] else 2

    @property
    def symbols(self) -> tuple[tuple[int, int], ...]:
        """OFDM symbols down and up, for every slot of the pattern.

        >>> Cell(name="hall").symbols
        ((14, 0), (14, 0), (14, 0), (10, 2), (0, 14))
        """
        if self.duplex == "fdd":
            return ((SLOT_SYMBOLS, SLOT_SYMBOLS),)
        down, _, up = self.special
        kinds = {"D": (SLOT_SYMBOLS, 0), "S": (down, up), "U": (0, SLOT_SYMBOLS)}
        return tuple(kinds[letter] for letter in self.tdd)

    @property
    def prbs(self) -> int:
        """
        >>> Cell(name="hall").prbs
        273
        """
        return resource_blocks(self.carrier_ghz, self.scs_khz)[self.bandwidth_mhz]

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
    rate_mbps: float | None = Field(None, gt=0)  # of the link from the user-plane function, each way; none: no limit
    queue_kb: float | None = Field(None, gt=0)  # at the link, each way; none: no limit

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
    up_mbps: float | None = Field(None, gt=0)  # maximum bit rate of all that matches together
    down_mbps: float | None = Field(None, gt=0)
    from_s: float = Field(0, ge=0)  # of the run: when it comes into force
    until_s: float | None = None

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        if self.device is not None and self.service is None:
            raise ValueError(f"a rule names device {self.device} of no service; add `service`")
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
