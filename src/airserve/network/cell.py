"""What a cell is: a base station, its carriers, and all that the radio is told of them."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airserve import catalog
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
DAY_MS = 86_400_000
LEAST_SYMBOLS = 4  # of a direction in a slot, so that control, DM-RS and data find room


def resource_blocks(carrier_ghz: float, scs_khz: int) -> dict[int, int]:
    """PRBs by bandwidth in MHz at a carrier and subcarrier spacing; empty where the spacing carries no data there.

    >>> resource_blocks(3.5, 30)[100], resource_blocks(28.0, 120)[100], resource_blocks(3.5, 120)
    (273, 66, {})
    """
    table = PRB_BY_BANDWIDTH if carrier_ghz <= FR1_GHZ[1] else PRB_BY_BANDWIDTH_FR2
    return table.get(scs_khz, {})


def shortest(pattern: str) -> str:
    """What a pattern repeats: two that repeat alike are one cell.

    >>> shortest("DDDSUDDDSU"), shortest("DDSDDU")
    ('DDDSU', 'DDSDDU')
    """
    return pattern[: (pattern + pattern).find(pattern, 1)]


Pattern = Annotated[str, Field(max_length=160), AfterValidator(shortest)]


class Description(BaseModel):
    """Frozen, and strict: a key that is not known is an error, never ignored, and so is a number without an end."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Carrier(Description):
    """What one of a base station's carriers has of its own; all else is the cell's."""

    carrier_ghz: float | None = Field(None, ge=FR1_GHZ[0], le=FR2_GHZ[1])
    bandwidth_mhz: int | None = None
    scs_khz: Literal[15, 30, 60, 120] | None = None
    duplex: Literal["tdd", "fdd"] | None = None
    tdd: Pattern | None = None
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
    tdd: Pattern = "DDDSU"  # downlink, special and uplink slots; of no meaning to an fdd cell
    special: tuple[int, int, int] = (10, 2, 2)  # symbols of an S slot: down, guard, up
    gnb_ports: int = Field(32, ge=1, le=64)
    ue_antennas: int = Field(4, ge=1, le=8)
    mimo: Literal["su", "mu"] = "su"  # mu: several devices on the same PRBs
    radio_parameters: Preset = "srsran"  # presets.py: sets what of the keys below is not given
    slicing: str = "ratio"  # a file of network/slices/
    slicing_window_ms: float = Field(0, ge=0, le=10_000)  # in which min and max hold on average; 0: in every slot
    grant: Literal["sr", "configured"] = "sr"  # configured: devices may send in any uplink slot without asking
    sr_period_ms: float = Field(20.0, gt=0, le=10_240)  # scheduling-request period of a device
    sr_resources: int = Field(144, ge=1, le=3276)  # devices that may ask in one uplink slot: 12 shifts of 12 PRBs
    allocation: Literal[0, 1] = 1  # what a grant can name, TS 38.214 5.1.2.2: 0 whole groups of PRBs, 1 one row of them
    rbg_config: Literal[1, 2] = 1  # size of these groups: rbg-Size of TS 38.331, Table 5.1.2.2.1-1
    buffer_status: Literal["short", "long", "exact"] = "short"  # reports: 32 levels, 256, or bytes
    p0_dbm: float = Field(-76.0, ge=-202, le=24)  # uplink power control, TS 38.213 7.1.1; of a PRB at 15 kHz
    alpha: float = Field(1.0, ge=0, le=1)  # part of the path loss that it makes up for
    always_on: bool = True  # devices stay connected, however long they are silent; else RRC states and random access
    inactivity_ms: float = Field(10_000.0, gt=0, le=DAY_MS)  # without traffic until a connection is released
    inactive_ms: float = Field(0.0, ge=0, le=DAY_MS)  # from then on in RRC_INACTIVE, until RRC_IDLE
    paging_cycle_ms: float = Field(1280.0, gt=0, le=2560)
    random_access: Literal["4-step", "2-step"] = "4-step"
    prach_period_ms: float = Field(10.0, gt=0, le=160)  # TS 38.211 6.3.3.2
    drx_cycle_ms: float = Field(0.0, ge=0, le=10_240)  # 0: devices listen all the time while connected
    drx_on_ms: float = Field(10.0, gt=0, le=10_240)  # of a cycle
    drx_inactivity_ms: float = Field(100.0, gt=0, le=DAY_MS)  # without traffic, until a device sleeps in its cycles
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
