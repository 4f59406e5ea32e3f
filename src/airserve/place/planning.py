"""From a description to a Plan: for every Service the cheapest way that keeps its promise, and why the others lost.

docs/planning.md says how it searches and what a way costs.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from airserve import arrivals
from airserve.contract import from_plain, to_plain
from airserve.network import radio, twin
from airserve.network.jit import digest as sources
from airserve.place.candidates import PlanError, Weights
from airserve.place.description import Factory
from airserve.place.explaining import Explanation
from airserve.place.judging import Judge, flows
from airserve.place.plan import Choice, Plan
from airserve.place.profiling import profile, resolve
from airserve.place.searching import Search
from airserve.progress import bar
from airserve.registry import Registry

__all__ = ["PlanError", "Weights", "flows", "known_or_planned", "known_plan", "load", "plan", "save"]

HEADROOM = 0.2
PLANS = 2  # raise it when a saved plan no longer says what one made now would
WEIGHTS = Weights()


def plan(
    factory: Factory,
    *,
    registry: Registry,
    seed: int = 0,
    headroom: float = HEADROOM,
    weights: Weights = WEIGHTS,
    planner: str = "exhaustive",
    progress: bool = True,
) -> Plan:
    """Choose variant, cut, encoding and sites for every Service with a model, pins respected.

    The promise of a Service that states its sizes is judged as the others are, and no way that breaks it is chosen.

    Bytes and seconds are taken `headroom` higher when a promise is judged; predictions are without. Where nothing
    keeps a promise, the Choice is the way that comes nearest, `kept` is False and `limits` says what would free it.
    Raises `PlanError` for a pin or a promise that cannot be met by any simulation, `errors.UserError` otherwise.
    """
    started = time.perf_counter()
    known = profile(factory, registry=registry, progress=progress)
    with bar("plan", wanted=progress) as done:

        def ran() -> None:
            done.by(1, f"plan: {judge.runs} runs of the twin")

        judge = Judge(factory, seed, ran)
        search = Search(factory, known, registry, judge, 1 + headroom, weights, planner)
        told = Explanation(search, search.all())
        choices, limits = told.choices(), told.limits()
    return Plan(
        description=digest(factory, registry),
        choices=choices,
        shares_up=told.predicted.shares_up,
        shares_down=told.predicted.shares_down,
        headroom=headroom,
        seed=seed,
        seconds=time.perf_counter() - started,
        limits=limits,
        stated=told.stated(),
    )


def digest(factory: Factory, registry: Registry) -> str:
    """What a Plan depends on: the description and the traces it names, its models, the network's code and tables.

    Raises `ArrivalError` and `TraceError` where a trace cannot be read.
    """
    models = [
        (one.reference, one.digest, str(one.samples_path))
        for service in factory.services
        if service.model
        for one in registry.variants(resolve(service.model, registry))
    ]
    judged_by = sources(Path(twin.__file__).parent), [radio.load(cell).made_by for cell in factory.network.carriers]
    asked = [arrivals.content(service.arrival) for service in factory.services]
    return hashlib.sha256(repr((PLANS, factory.model_dump_json(), models, judged_by, asked)).encode()).hexdigest()


def save(made: Plan, name: str, registry: Registry | None = None) -> Path:
    """Write a Plan as JSON to HOME/plans/NAME.json."""
    path = _path(name, registry or Registry())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_plain(made)), encoding="utf-8")
    return path


def load(path: Path, again: str = "plan again: airserve plan FILE") -> Plan:
    """A Plan that was saved. Raises `PlanError` when the file is not one; `again` says what to do then."""
    try:
        return from_plain(Plan, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"{path} is not a saved plan ({str(error)[:80]}); {again}.") from None


def known_plan(factory: Factory, name: str, registry: Registry | None = None) -> Plan | None:
    """The saved Plan of a description, or None where there is none or the description or its models have changed."""
    registry = registry or Registry()
    path = _path(name, registry)
    if not path.is_file():
        return None
    try:
        made = load(path)
    except PlanError:  # of an earlier version: planning again replaces it
        return None
    return made if made.description == digest(factory, registry) else None


def known_or_planned(
    factory: Factory, name: str, *, registry: Registry | None = None, progress: bool = True
) -> tuple[Choice, ...]:
    """The choices of the saved Plan, or of one made now; none where no service has a model."""
    if not any(service.model for service in factory.services):
        return ()
    registry = registry or Registry()
    made = known_plan(factory, name, registry)
    if made is None:
        made = plan(factory, registry=registry, progress=progress)
        save(made, name, registry)
    return made.choices


def _path(name: str, registry: Registry) -> Path:
    return registry.home / "plans" / f"{name}.json"
