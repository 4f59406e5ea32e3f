"""The file a user writes: a network and the services on it, read strictly and refused in one sentence."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from airserve import arrivals, contract, documents
from airserve.errors import Unknown, UserError
from airserve.network import equipment
from airserve.network.cell import DAY_MS, Description, Name
from airserve.network.channels import Channel
from airserve.network.topology import Network, Site
from airserve.network.traffic import Transport
from airserve.place.wording import sentence


class DescriptionError(UserError, ValueError):
    """A description that cannot be used; the message says what, where in the file, and what would be right."""


class Misplaced(ValueError):
    """What holds of no part of a description alone, and the path of the part that is to change."""

    def __init__(self, said: str, *where: str | int) -> None:
        super().__init__(said)
        self.where = where


class Promise(Description):
    """What is told to the users of a Service."""

    latency_ms: float = Field(gt=0)
    percentile: float = Field(99, gt=0, lt=100)
    max_accuracy_drop: float | None = Field(None, ge=0, le=1)

    @field_validator("percentile")
    @classmethod
    def _in_per_cent(cls, value: float) -> float:
        if value < 1:
            raise ValueError(f"percentile is {value:g}; write {100 * value:g} for the {100 * value:g}th")
        return value

    def plain(self) -> contract.Promise:
        return contract.Promise(self.latency_ms, self.percentile, self.max_accuracy_drop)


class Pin(Description):
    """A choice that the user makes in place of the planner."""

    variant: str | None = None
    cut: str | None = None  # a tensor's name; "none": not cut; "input": send the input
    encoding: Literal["raw", "int8"] | None = None
    sites: tuple[str, ...] | None = None


class Service(Description):
    """A model, the devices that ask it, how often, and the promise; or sizes and a compute time in place of a model."""

    name: Name
    slice: Name
    devices: int = Field(ge=1, le=10_000)
    rate_hz: float = Field(gt=0, le=10_000)
    arrival: str = "periodic"  # periodic | poisson | bursts | ftp3 | xr, with parameters, or trace: FILE
    promise: Promise | None = None
    model: str | None = None  # a name in the registry, or a path to an .onnx file
    device: Name | None = None  # the site of kind device that asks
    pin: Pin | None = None
    bytes_up: int | None = Field(None, ge=1, le=arrivals.MOST_BYTES)
    bytes_down: int | None = Field(None, ge=1, le=arrivals.MOST_BYTES)
    compute_ms: float | None = Field(None, ge=0, le=DAY_MS)
    site: Name | None = None
    ue: str = "full"  # what its devices are on the radio: full, or redcap with parameters, see docs/network.md
    carrier: int | None = Field(None, ge=1)  # of the cell's `carriers`, that its devices are on; none: dealt by load
    transport: Transport = "stream"  # in the twin; the emulator's is always "stream": docs/network.md
    devices_of: Name | None = None  # another service, on whose devices this one is too, the first on the first
    channel: Channel = Channel()  # its logical channel on these devices: who goes first in a grant

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        sized = [self.bytes_up, self.bytes_down, self.compute_ms, self.site]
        if self.model is None and None in sized:
            raise ValueError(
                f"service {self.name} has no model; give `model`, or all of bytes_up, bytes_down, compute_ms and site"
            )
        if self.model is not None and any(value is not None for value in sized):
            raise ValueError(
                f"service {self.name} has a model and also bytes_up, bytes_down, compute_ms or site; keep one"
            )
        if self.model is not None and (self.device is None or self.promise is None):
            raise ValueError(f"service {self.name} has a model and needs `device` and `promise` too")
        return self

    @field_validator("arrival")
    @classmethod
    def _law(cls, value: str) -> str:
        arrivals.parse(value)
        return value

    @field_validator("ue")
    @classmethod
    def _equipment(cls, value: str) -> str:
        equipment.parse(value)
        return value


class Factory(Description):
    """A whole file: the network and its services."""

    network: Network
    services: tuple[Service, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        slices = [s.name for s in self.network.slices]
        sites = {s.name: s for s in self.network.sites}
        names = [s.name for s in self.services]
        for k, rule in enumerate(self.network.rules):
            if rule.service is not None:
                _known("service", rule.service, names, "a rule", "network", "rules", k, "service")
        for k, service in enumerate(self.services):
            here, who = ("services", k), f"service {service.name}"
            if service.name in names[:k]:
                raise Misplaced(f"two services are named {service.name}; give each its own name", *here, "name")
            _known("slice", service.slice, slices, who, *here, "slice")
            if service.devices_of is not None:
                own = [one.name for one in self.services if one.devices_of is None and one.name != service.name]
                if not own:
                    raise Misplaced(f"{who} has devices_of, and no other has devices to share", *here, "devices_of")
                if service.devices_of in names and service.devices_of not in own:
                    itself = service.devices_of == service.name
                    raise Misplaced(
                        f"{who} has devices_of {service.devices_of!r}, which "
                        f"{'is the service itself' if itself else 'has devices_of too'}; name one that has devices of "
                        f"its own: {', '.join(own)}",
                        *here, "devices_of",
                    )  # fmt: skip
                _known("service", service.devices_of, own, f"{who} in devices_of", *here, "devices_of")
            for key in ("site", "device"):
                if (site := getattr(service, key)) is not None:
                    _known("site", site, list(sites), who, *here, key)
            for i, site in enumerate((service.pin and service.pin.sites) or ()):
                _known("site", site, list(sites), who, *here, "pin", "sites", i)
            if service.site and (took_ms := (service.compute_ms or 0) / sites[service.site].speed) > DAY_MS:
                raise Misplaced(
                    f"{who} computes {took_ms:g} ms at {service.site}, whose speed is {sites[service.site].speed:g}; "
                    f"a day at most is wanted, {DAY_MS:,} ms",
                    *here, "compute_ms",
                )  # fmt: skip
            if service.carrier is not None and service.carrier > (there := len(self.network.carriers)):
                raise Misplaced(
                    f"{who} is on carrier {service.carrier}; cell {self.network.cell.name} has {there}: raise its "
                    "carriers, or leave the key out",
                    *here, "carrier",
                )  # fmt: skip
            if service.device and sites[service.device].kind != "device":
                devices = ", ".join(name for name, site in sites.items() if site.kind == "device")
                raise Misplaced(
                    f"{who} is asked from {service.device}, which is of kind {sites[service.device].kind}; "
                    f"a device is wanted: {devices or 'add one to sites'}",
                    *here, "device",
                )  # fmt: skip
        return self

    def service(self, name: str) -> Service:
        if name not in (names := [s.name for s in self.services]):
            raise Unknown("service", name, names)
        return self.services[names.index(name)]

    def servers(self) -> list[Site]:
        """The sites behind the user-plane function: edge and cloud."""
        return [site for site in self.network.sites if site.kind != "device"]


def _known(kind: str, name: str, names: list[str], who: str, *where: str | int) -> None:
    if name not in names:
        near = get_close_matches(name, names) or names
        raise Misplaced(f"{who} names {kind} {name!r}, which does not exist; perhaps {', '.join(near)}?", *where)


def read(path: str | Path) -> Factory:
    """A description from a YAML file.

    Raises `DescriptionError`: one sentence with what is wrong, the line, and what would be right.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DescriptionError(f"{path} cannot be read ({error.strerror}); give the path of a description.") from None
    except UnicodeDecodeError:
        raise DescriptionError(f"{path} is not a text file; give the path of a description in YAML.") from None
    try:
        data, tree = documents.parse(text, str(path))
    except documents.DocumentError as error:
        raise DescriptionError(str(error)) from None
    if not isinstance(data, dict):
        raise DescriptionError(f"{path} holds no description; it starts with `network:` and `services:`.")
    services = data.get("services")
    for service in services if isinstance(services, list) else ():
        arrival = service.get("arrival") if isinstance(service, dict) else None
        if isinstance(arrival, dict) and list(arrival) == ["trace"]:  # YAML reads `trace: FILE` as a mapping
            service["arrival"] = f"trace: {arrival['trace']}"
    try:
        return with_budgets(Factory.model_validate(data))
    except ValidationError as error:
        raise DescriptionError(sentence(path, Factory, data, tree, error)) from None


def with_budgets(factory: Factory) -> Factory:
    """A slice that names neither 5QI nor budget gets the tightest promise of its services as `delay_budget_ms`."""
    promised: dict[str, float] = {}
    for one in factory.services:
        if one.promise is not None:
            promised[one.slice] = min(one.promise.latency_ms, promised.get(one.slice, float("inf")))
    slices = tuple(
        s.model_copy(update={"delay_budget_ms": promised[s.name]})
        if s.five_qi is None and s.delay_budget_ms is None and s.name in promised
        else s
        for s in factory.network.slices
    )
    return factory.model_copy(update={"network": factory.network.model_copy(update={"slices": slices})})


def schema() -> dict[str, Any]:
    """The JSON schema of a description, for editors."""
    return Factory.model_json_schema()
