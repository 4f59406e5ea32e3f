"""Every way to serve a Service: variant x cut x encoding x sites, with bytes and seconds; and what each costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final
from urllib.parse import quote

import numpy as np

from airserve.errors import UserError
from airserve.model import Array, Function, Model
from airserve.network.topology import Network, Site
from airserve.place.bounds import mean_bps
from airserve.place.description import Factory, Pin, Service
from airserve.place.measuring import VariantProfile, Way, halves
from airserve.place.plan import Candidate
from airserve.place.profiling import Lazy, ModelProfile, Profile, cut_score, resolve
from airserve.registry import Registry

FASTER = 0.97  # of fp32's seconds: a variant that takes more is no faster


class PlanError(UserError):
    """A description that nothing can serve; the message is one sentence for the user."""


@dataclass(frozen=True)
class Weights:
    """What a use of the network costs; the unit is one core of an edge site, all the time.

    `prb` weighs the share of one cell's PRBs, up and down alike: its whole carrier is worth four cores by default.
    The devices are there anyway.
    """

    prb: float = 4.0
    device: float = 0.0
    edge: float = 1.0
    cloud: float = 0.5

    def core(self, site: Site) -> float:
        return {"device": self.device, "edge": self.edge, "cloud": self.cloud}[site.kind]


def cost(candidate: Candidate, service: Service, network: Network, weights: Weights) -> float:
    """Core-seconds a second at each site, and the share of the PRBs at the cell's mean rate, all weighted."""
    asked_hz = service.devices * service.rate_hz
    cores = weights.core(network.site(candidate.device_site)) * float(np.mean(candidate.device_seconds))
    share = 0.0
    if candidate.site:
        cores += weights.core(network.site(candidate.site)) * float(np.mean(candidate.site_seconds))
        up, down = mean_bps(network.cell)
        share = 8 * (float(np.mean(candidate.bytes_up)) / up + float(np.mean(candidate.bytes_down)) / down)
    return asked_hz * (cores + weights.prb * share)


def candidates(service: Service, factory: Factory, profile: ModelProfile, registry: Registry) -> list[Candidate]:
    """All candidates of a Service; a pin keeps those that it names.

    The score of a cut that travels as int8 is None until `Scores` measures it. Raises `PlanError` where a pin names
    what does not exist.
    """
    assert service.model is not None  # a profile was made of it
    found: list[Candidate] = []
    for variant in profile.variants:
        model = registry.get(variant.reference)
        for way in variant.ways:
            for site in [None] if way.cut == "none" else factory.servers():
                packs = (False, True) if len(way.packed_up) else (False,)
                found += [_candidate(service, factory, profile, variant, model, way, site, pack) for pack in packs]
    if service.pin is None:
        return found
    kept = [one for one in found if _pinned(one, service.pin)]
    if not kept:
        raise PlanError(_no_such_pin(service, found))
    return kept


def fits(candidate: Candidate, variant: VariantProfile, network: Network) -> str:
    """Empty, or why a site cannot hold its part of the Model."""
    way = variant.way(candidate.cut, candidate.encoding)
    whole = candidate.cut in ("none", "input")
    needs = {
        candidate.device_site: 0.0 if candidate.cut == "input" else variant.memory_mb if whole else way.head_mb,
        candidate.site: 0.0 if candidate.cut == "none" else variant.memory_mb if whole else way.tail_mb,
    }
    for name, need_mb in needs.items():
        has_mb = network.site(name).memory_mb if name and need_mb else None
        if has_mb is not None and need_mb > has_mb:
            return (
                f"{candidate.label} does not fit {name}: it needs {need_mb:.1f} MB of {has_mb:g} MB; "
                "compress it, cut it earlier or give the site more memory_mb"
            )
    return ""


def refusals(service: Service, profile: ModelProfile) -> dict[str, str]:
    """Variants that are out before any simulation: less accurate than promised, or no faster than fp32; and why.

    Raises `PlanError` where an accuracy is promised and the Model has no samples to measure it on.
    """
    assert service.promise is not None
    drop = service.promise.max_accuracy_drop
    base = profile.variants[0]
    if drop is not None and base.score is None:
        raise PlanError(
            f"service {service.name} promises max_accuracy_drop {drop:g}, but {profile.model} has no samples to "
            "measure it on: import it with --samples, or take the promise out."
        )
    found = {}
    for variant in profile.variants[1:]:
        if variant.score is None:
            found[variant.variant] = f"{variant.variant}: no samples, so its score is unknown"
        elif drop is not None and (base.score or 0.0) - variant.score > drop + 1e-9:
            found[variant.variant] = (
                f"{variant.variant} {too_far(variant.metric, variant.score, variant.before, variant.scored, drop)}"
            )
        elif variant.against > FASTER:
            found[variant.variant] = (
                f"{variant.variant} is not faster than {base.variant}: it takes {variant.against:.2f} times as long on "
                "this machine, and so on every site"
            )
    return found


def too_far(metric: str, score: float, before: float | None, scored: int, drop: float) -> str:
    """Why a score misses an accuracy promise, with the numbers.

    >>> too_far("agreement", 0.85, 1.0, 80, 0.02)
    'agrees with fp32 on 85.0 % of 80 samples; the allowed drop is 0.02'
    """
    if metric == "r2":
        return f"has an r2 of {score:.3f} on {scored} samples, fp32 {before:.3f}; the allowed drop is {drop:g}"
    if metric == "agreement":
        said = f"agrees with fp32 on {score:.1%} of {scored} samples"
    else:
        said = f"has an accuracy of {score:.1%} on {scored} samples, fp32 {before:.1%}"
    return f"{said.replace('%', ' %')}; the allowed drop is {drop:g}"


@final
class Scores:
    """The score of a candidate, measured when first asked for and kept in the registry."""

    def __init__(self, factory: Factory, profile: Profile, registry: Registry) -> None:
        self._registry = registry
        self._samples = {
            service.model: Lazy(resolve(service.model, registry)) for service in factory.services if service.model
        }
        self._profile = profile

    def of(self, service: Service, candidate: Candidate) -> Candidate:
        """The candidate with its score."""
        if candidate.encoding != "int8" or candidate.score is not None or service.model is None:
            return candidate
        model = self._registry.get(candidate.reference)
        parent = self._registry.get(candidate.reference.partition("/")[0])
        way = _variant(self._profile.of(service.model), candidate).way(candidate.cut, candidate.encoding)
        score = cut_score(way, model, parent, self._samples[service.model], self._registry)
        return replace(candidate, score=score)


def realised(candidate: Candidate, profile: ModelProfile, registry: Registry) -> Candidate:
    """The candidate with the files of its head and tail in the registry's store."""
    if candidate.cut in ("none", "input"):
        return candidate
    way = _variant(profile, candidate).way(candidate.cut, candidate.encoding)
    head, tail = halves(way, registry.get(candidate.reference))
    paths = {"head": str(registry.store(head, ".onnx")), "tail": str(registry.store(tail, ".onnx"))}
    return replace(
        candidate,
        device_functions=tuple(replace(f, path=paths.get(f.kind, f.path)) for f in candidate.device_functions),
        site_functions=tuple(replace(f, path=paths.get(f.kind, f.path)) for f in candidate.site_functions),
    )


def variant_of(candidate: Candidate, profile: ModelProfile) -> VariantProfile:
    """The profile of a candidate's variant."""
    return _variant(profile, candidate)


def _variant(profile: ModelProfile, candidate: Candidate) -> VariantProfile:
    return next(variant for variant in profile.variants if variant.variant == candidate.variant)


def _candidate(
    service: Service,
    factory: Factory,
    profile: ModelProfile,
    variant: VariantProfile,
    model: Model,
    way: Way,
    site: Site | None,
    pack: bool,
) -> Candidate:
    assert service.device is not None
    device = factory.network.site(service.device)
    pack_s, unpack_s = (way.pack_s, way.unpack_s) if pack else (0.0, 0.0)
    whole = Function(variant.reference, "model", str(model.path))
    first: list[tuple[Function, Array]] = []
    then: list[tuple[Function, Array]] = []
    if way.cut == "none":
        first = [(whole, way.head_s)]
    elif way.cut == "input":
        then = [(Function("jpeg", "preprocess"), profile.decode_s)] if way.encoding == "jpeg" else []
        then.append((whole, way.tail_s))
    else:
        first = [(Function(f"{variant.reference} until {way.cut}", "head"), way.head_s)]
        then = [(Function(f"{variant.reference} after {way.cut}", "tail"), way.tail_s)]
    device_functions, device_s = _on(device, first, pack_s)
    site_functions, site_s = _on(site, then, unpack_s + way.handle_s) if site else ((), np.zeros(1))
    bytes_up, bytes_down = np.zeros(1), np.zeros(1)
    if site is not None:
        endpoint = service.name if way.cut == "input" else f"{service.name}-tail"
        longer = len(quote(endpoint)) - len(quote(model.name))
        bytes_up = (way.packed_up if pack else way.bytes_up) + longer
        bytes_down = variant.bytes_down + len(endpoint) - len(model.name) + 2 * (len(site.name) - len("mast"))
    return Candidate(
        service=service.name,
        reference=variant.reference,
        variant=variant.variant,
        cut=way.cut,
        encoding=way.encoding,
        device_site=device.name,
        site=site.name if site else "",
        device_functions=device_functions,
        site_functions=site_functions,
        device_seconds=device_s,
        site_seconds=site_s,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        compress=pack,
        metric=variant.metric,
        score=None if way.encoding == "int8" else variant.score,
        before=variant.before,
        scored=variant.scored,
    )


def _on(site: Site, functions: list[tuple[Function, Array]], extra_s: float) -> tuple[tuple[Function, ...], Array]:
    """Functions as they run on a site, and the seconds of one request there: what a slower site's padding makes.

    `extra_s` runs beside the Functions and is not padded: zstd and the handling of messages. The padding of the last
    Function makes up for it, so that the site is slower by its speed as a whole. On a device handling is left out.
    """
    if not functions:
        return (), np.zeros(1)
    if site.speed == 1:
        size = max(len(seconds) for _, seconds in functions)
        total: Array = sum((np.resize(seconds, size) for _, seconds in functions), np.full(size, extra_s))
        return tuple(function for function, _ in functions), total
    padded = [float(np.median(seconds)) / site.speed for _, seconds in functions]
    padded[-1] += extra_s * (1 / site.speed - 1)
    slowed = tuple(replace(f, padded_s=pad) for (f, _), pad in zip(functions, padded, strict=True))
    return slowed, np.array([sum(padded) + extra_s])


def _pinned(candidate: Candidate, pin: Pin) -> bool:
    """Whether a candidate is what a pin names; what the pin leaves open may be anything."""
    return (
        pin.variant in (None, candidate.variant)
        and pin.cut in (None, candidate.cut)
        and pin.encoding in (None, candidate.encoding)
        and (pin.sites is None or tuple(pin.sites) == candidate.sites)
    )


def _no_such_pin(service: Service, found: list[Candidate]) -> str:
    pin = service.pin
    assert pin is not None
    there = {
        "variant": (pin.variant, [one.variant for one in found]),
        "cut": (pin.cut, [one.cut for one in found]),
        "encoding": (pin.encoding, [one.encoding for one in found]),
        "sites": (pin.sites and " + ".join(pin.sites), [" + ".join(one.sites) for one in found]),
    }
    for key, (wanted, known) in there.items():
        if wanted is not None and wanted not in known:
            shown = ", ".join(list(dict.fromkeys(filter(None, known)))[:40])
            return f"service {service.name} pins {key} {wanted!r}, which does not exist; there is {shown}."
    named = ", ".join(f"{key} {wanted!r}" for key, (wanted, _) in there.items() if wanted is not None)
    return f"service {service.name} pins {named}, which do not go together; `airserve profile` lists what there is."
