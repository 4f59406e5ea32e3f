"""What a service offers, and what it would offer once a model is loaded, unloaded, or means another version.

Each version is counted in a slot of its own, for as long as it is offered.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import final

from airserve.model import ModelError
from airserve.serve import offering
from airserve.serve.configuration import Configuration, ConfigurationError
from airserve.serve.inquiring import Inquiry
from airserve.serve.metering import SLOTS, Table
from airserve.serve.offering import Offer


@final
class Lineup:
    """The versions that are offered. Raises `UserError` where the sources of a Configuration hold none."""

    def __init__(self, configuration: Configuration, table: Table) -> None:
        self._sources, self._cores, self._table = configuration.sources, configuration.cores, table
        found = offering.together(self._sources, self._cores)
        if not found:
            raise ConfigurationError("there is no model to serve; name an .onnx file, a folder or a model.")
        if len(found) > SLOTS // 2:
            raise ConfigurationError(f"{len(found)} versions are more than {SLOTS // 2}; serve fewer.")
        self.offers = [replace(offer, slot=slot) for slot, offer in enumerate(found)]
        self._next_slot = len(found)

    def unloaded(self, model: str) -> list[Offer]:
        """What is offered without a model."""
        return [offer for offer in self.offers if offer.endpoint.name != model]

    def source(self, model: str) -> str:
        """Where a model comes from. Raises `ModelError`."""
        for source in self._sources:
            if model in offering.names(source) or _names(source, model):
                return source
        known = ", ".join(name for source in self._sources for name in offering.names(source) or [source])
        raise ModelError(f"no source of this service holds a model {model[:80]!r}; there is {known}.")

    def loaded(self, model: str, source: str, inquiry: Inquiry | None = None) -> list[Offer]:
        """What is offered once a model was read anew, from an `inquiry` where it comes from the registry.

        Raises `ModelError`.
        """
        if inquiry is None:
            offers = offering.offers(source, model, self._cores)
        else:
            offers = [offering.offered(offering.answered(inquiry.answer(), self._cores), source)]
        found = {offer.key: offer for offer in offers if offer.endpoint.name == model}
        others = [  # with versions of it that come from elsewhere
            offer
            for offer in self.offers
            if offer.key not in found and (offer.source, offer.endpoint.name) != (source, model)
        ]
        before, loaded = {offer.key: offer for offer in self.offers}, list[Offer]()
        for key, offer in found.items():
            slot = before[key].slot if key in before else self._slot(others + loaded)
            loaded.append(replace(offer, slot=slot))
        if not loaded:
            raise ModelError(f"{source} holds no version of {model} any more.")
        return others + loaded

    def followed(self, found: Offer) -> list[Offer]:
        """What is offered once a source means what was `found`. Raises `ModelError`."""
        others = [offer for offer in self.offers if offer.source != found.source]
        before = next((offer for offer in self.offers if offer.source == found.source), None)
        if before is None:  # unloaded meanwhile
            return self.offers
        if any(offer.key == found.key for offer in others):
            raise ModelError(f"version {found.endpoint.version} of {found.endpoint.name} is served already.")
        slot = before.slot if before.key == found.key else self._slot(self.offers)
        print(f"{found.source} is version {found.endpoint.version} now.", file=sys.stderr, flush=True)
        return [*others, replace(found, slot=slot)]

    def _slot(self, used: Sequence[Offer]) -> int:
        """A free place to count in; what was served last gave up its place longest ago."""
        taken = {offer.slot for offer in (*used, *self.offers)}
        if len(taken) >= SLOTS:
            raise ModelError(f"{SLOTS} versions are served already; unload one.")
        while (slot := self._next_slot % SLOTS) in taken:
            self._next_slot += 1
        self._next_slot += 1
        self._table.clear(slot)
        return slot


def _names(source: str, model: str) -> bool:
    """Whether a source that names a model of the registry names this one.

    >>> [_names(source, "m-int8") for source in ("m", "m/int8", "m@live/int8", "m-int8", "m-int8@3")]
    [False, True, True, True, True]
    """
    rest, _, variant = source.partition("/")
    name = rest.partition("@")[0]
    return offering.registered(source) and model == (name if variant in ("", "fp32") else f"{name}-{variant}")
