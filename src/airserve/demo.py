"""The main job in one go: train, import, compress, profile, plan, up, drive, report, down; then one cut, pinned."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from airserve.learn.compression import compress
from airserve.learn.importing import import_pretrained
from airserve.learn.tasks import TaskError
from airserve.learn.training import train
from airserve.model import Model
from airserve.network.warming import warm
from airserve.place.deployment import down, up, wanted
from airserve.place.description import Factory, Pin, read
from airserve.place.plan import Candidate, Plan
from airserve.place.planning import known_plan, plan, save
from airserve.place.profiling import profile
from airserve.progress import bar
from airserve.registry import Registry
from airserve.serve.driving import Drive, drive
from airserve.web.contents import contents, keep
from airserve.web.report import save as save_page

FACTORY = Path("examples/factory/factory.yaml")
WARMING, BESIDE = "airserve.network.warming", "airserve.demo"  # what the other core does while a net is trained
TRAINED, FALLBACK, PRETRAINED = "fashion-mnist", "digits", "efficientnet-lite0"


def run(
    file: Path | None, *, seconds: float, seed: int, fresh: bool, console: Console, port: int = 7800
) -> dict[str, Any]:
    """The report of the run, with that of a pinned cut inside; its page is saved, and its path stands in `page`.

    Without a file: the factory's models are made first. With one: its models have to be in the registry.
    """
    began_s = time.monotonic()
    registry, name = Registry(), (file or FACTORY).stem
    factory = read(file or FACTORY)
    remarks: list[str] = []
    quiet = subprocess.DEVNULL  # what fails there is done again here, and says why
    aside = [WARMING] if file else [BESIDE, *(["--fresh"] if fresh else [])]
    other = subprocess.Popen([sys.executable, "-m", *aside], stdout=quiet, stderr=quiet)
    try:
        if file is None:
            factory, remarks = _models(factory, registry, fresh, console, other)
        other.wait()
    finally:
        other.kill()
    with step(console, "profile", "seconds and bytes of every candidate on this machine"):
        profile(factory, registry=registry, fresh=fresh)
    with step(console, "plan", "the cheapest way that keeps every promise, judged by the twin"):
        known = None if fresh else known_plan(factory, name, registry)
        made = known if known and known.seed == seed else plan(factory, registry=registry, seed=seed)
        save(made, name, registry)
    for limit in made.limits:
        console.print(f"   {limit}", highlight=False)
    ran = _measure(factory, made, registry, name, seconds, seed, port, console)
    further = []
    if pinned := _pinned(factory, made):
        with step(
            console, "plan", f"{pinned.services[0].name} again, with its best cut pinned: head and tail on two sites"
        ):
            cut = plan(pinned, registry=registry, seed=seed)
        ran_cut = _measure(pinned, cut, registry, f"{name}-cut", seconds, seed + 1, port, console)
        further = [contents(f"{name}-cut", pinned, cut, ran_cut)]
    found = contents(name, factory, made, ran, further)
    found["emulation"] = [*remarks, *found["emulation"]]
    page = registry.home / "run" / name / "report.html"
    found["page"] = str(save_page(found, page))
    console.print(f"[bold]done[/] in {time.monotonic() - began_s:.0f} s", highlight=False)
    return found


@contextmanager
def step(console: Console, verb: str, text: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    console.print(f"[bold]{verb:>9}[/]  {text}", highlight=False)
    began_s = time.monotonic()
    yield
    console.print(f"           [dim]{time.monotonic() - began_s:.1f} s[/]", highlight=False)


def _models(
    factory: Factory, registry: Registry, fresh: bool, console: Console, other: subprocess.Popen[bytes]
) -> tuple[Factory, list[str]]:
    """The factory's models: trained here, imported with published weights, and int8 of both."""
    remarks = []
    with step(console, "train", f"resnet8 for {TRAINED}"):
        try:
            trained = train("resnet8", TRAINED, registry=registry, fresh=fresh)
        except TaskError as absent:
            remarks.append(f"the data of inspect: {FALLBACK} in place of {TRAINED}, for {absent}")
            console.print(f"   {remarks[0]}", highlight=False)
            trained = train("resnet8", FALLBACK, registry=registry, fresh=fresh)
    _say(console, trained)
    other.wait()  # it has imported and compressed already
    with step(console, "import", f"{PRETRAINED} with its published ImageNet weights"):
        imported = import_pretrained(PRETRAINED, registry=registry)
    _say(console, imported)
    for model in (trained, imported):
        with step(console, "compress", f"{model.name} to int8"):
            smaller = compress(model, "int8", registry=registry, fresh=fresh and model is trained)
        _say(console, smaller)
    services = tuple(
        one.model_copy(update={"model": trained.name}) if (one.model or "").startswith("resnet8-") else one
        for one in factory.services
    )
    return factory.model_copy(update={"services": services}), remarks


def _say(console: Console, model: Model) -> None:
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in model.scores.items())
    console.print(f"           {model.reference}: {scores}", highlight=False)


def _measure(
    factory: Factory, made: Plan, registry: Registry, name: str, seconds: float, seed: int, port: int, console: Console
) -> Drive:
    """One measured run: up, drive, down. Whatever happens, nothing is left running."""
    deployment = wanted(factory, made, registry=registry, name=name, port=port, seed=seed)
    try:
        with step(console, "up", f"{len(deployment.processes)} site processes and the air"), bar("up") as done:
            running = up(deployment, registry.home, done.to)
            keep(running.run_dir, factory, made)
        asked = ", ".join(f"{one.service} {len(one.addresses)} x {one.rate_hz:g} Hz" for one in deployment.askers)
        with step(console, "drive", f"{seconds:g} s, open loop: {asked}"), bar("drive") as done:
            return drive(deployment, seconds=seconds, seed=seed, run_dir=running.run_dir, progress=done.to)
    finally:
        with step(console, "down", name):
            down(name, registry.home)


def _pinned(factory: Factory, made: Plan) -> Factory | None:
    """The description with the best cut that lost pinned, where head and tail run on two sites; alone in the cell."""
    lost = [(one, choice) for choice in made.choices for one in choice.runners_up if _is_cut(one.candidate)]
    if not lost:
        return None
    best, choice = min(lost, key=lambda pair: pair[0].predicted_ms / pair[1].promise.latency_ms)
    chosen = best.candidate
    pin = Pin.model_validate(
        {"variant": chosen.variant, "cut": chosen.cut, "encoding": chosen.encoding, "sites": chosen.sites}
    )
    service = factory.service(choice.service).model_copy(update={"pin": pin})
    return factory.model_copy(update={"services": (service,)})


def _is_cut(candidate: Candidate) -> bool:
    return candidate.cut not in ("none", "input")


def beside(fresh: bool) -> None:
    """What needs no trained net, on the other core: compile the MAC, import and compress what comes with weights."""
    warm()
    registry = Registry()
    imported = import_pretrained(PRETRAINED, registry=registry, fresh=fresh)
    compress(imported, "int8", registry=registry, fresh=fresh, progress=False)


if __name__ == "__main__":
    beside(fresh="--fresh" in sys.argv)
