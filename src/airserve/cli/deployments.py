"""The commands from a description to a report: profile, plan, up, status, drive, report, down, schema, demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from airserve.cli.app import (
    INVALID,
    KEPT,
    NO_PLAN,
    NOT_KEPT,
    File,
    Fresh,
    Json,
    Name,
    Seed,
    app,
    digits,
    note,
    out,
    rows,
    show,
)
from airserve.progress import bar

command = partial(app.command, rich_help_panel="From a description to a report")


@command()
def profile(
    file: File,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Measure seconds and bytes of every candidate of a description's models on this machine."""
    from airserve.place.description import read
    from airserve.place.profiling import profile as measure
    from airserve.registry import Registry

    found = measure(read(file), registry=Registry(), fresh=fresh, progress=not as_json)
    if as_json:
        return show(found.plain())
    rows(found.COLUMNS, found.rows(), "seconds on this machine at speed 1; bytes are whole HTTP messages")
    if engines := found.engine_rows():
        rows(
            found.ENGINE_COLUMNS,
            engines,
            "one row at a time; `airserve serve` opens a Model as chosen for the cores of each worker",
        )


@command()
def plan(file: File, seed: Seed = 0, as_json: Json = False) -> None:
    """Choose variant, cut, encoding and sites for every service; exit status 3 where nothing keeps the promise."""
    from airserve.place.description import read
    from airserve.place.planning import save
    from airserve.web.contents import contents

    factory, made = read(file), _plan(file, seed, not as_json)
    save(made, file.stem)
    _report(contents(file.stem, factory, made), as_json)
    raise typer.Exit(KEPT if made.kept else NO_PLAN)


@command()
def up(
    file: File,
    port: Annotated[int, typer.Option(help="First port of the sites.")] = 7800,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Start what the plan says: the sites' processes and the air between them."""
    from airserve.place.deployment import status as look
    from airserve.place.deployment import up as start
    from airserve.place.deployment import wanted
    from airserve.place.description import read
    from airserve.place.planning import known_plan, save
    from airserve.registry import Registry
    from airserve.web.contents import keep

    factory, name, registry = read(file), file.stem, Registry()
    made = known_plan(factory, name, registry)
    if made is None:
        made = _plan(file, 0, not as_json)
        save(made, name, registry)
    if not made.kept:
        for limit in made.limits:
            note.print(limit, highlight=False, soft_wrap=True)
        raise typer.Exit(NO_PLAN)
    with bar(f"up {name}", wanted=not as_json) as done:
        running = start(
            wanted(factory, made, registry=registry, name=name, port=port, seed=seed), registry.home, done.to
        )
    keep(running.run_dir, factory, made)
    _status(look(name, registry.home), as_json)


@command()
def status(name: Name = None, as_json: Json = False) -> None:
    """What is wanted and what runs."""
    from airserve.place.deployment import only
    from airserve.place.deployment import status as look
    from airserve.registry import home

    _status(look(name or only(home()), home()), as_json)


@command()
def drive(
    name: Name = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long the devices ask.")] = 30.0,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Let every device send its real inputs at its rate, and measure."""
    from airserve.place.deployment import folder, load, only
    from airserve.place.planning import load as load_plan
    from airserve.registry import home
    from airserve.serve.driving import PLAN
    from airserve.serve.driving import drive as ask
    from airserve.web.contents import AGAIN, measured
    from airserve.web.words import scored

    name = name or only(home())
    deployment, run_dir = load(name, home()), folder(name, home())
    made = load_plan(run_dir / PLAN, AGAIN) if (run_dir / PLAN).exists() else None
    with bar(f"drive {name}", wanted=not as_json) as done:
        ran = ask(deployment, seconds=seconds, seed=seed, run_dir=run_dir, progress=done.to)
    found = measured(deployment, ran, made)
    if as_json:
        show(found)
    else:
        rows(
            ["service", "sent", "answered", "failed", "p50 ms", "measured", "promise", "verdict"],
            [[s["name"], s["sent"], s["answered"], s["failed"], digits(s["measured_p50_ms"]),
              f"p{s['percentile']:g} {digits(s['measured_ms'])} ms", f"{s['promise_ms']:g} ms", s["verdict"]]
             for s in found["services"]],
        )  # fmt: skip
        for one in (s for s in found["services"] if s["score"]["value"] is not None):
            out.print(f"{one['name']}: {scored(one)}", highlight=False)
        out.print(
            f"{found['invalid_why'] or 'The run is valid.'} Promised, predicted and measured: airserve report {name}"
        )
    raise typer.Exit(_exit(found))


@command()
def report(
    name: Name = None,
    to: Annotated[Path | None, typer.Option(help="Where the HTML page goes.")] = None,
    as_json: Json = False,
) -> None:
    """Promised, predicted and measured: a table and a page."""
    from airserve.place.deployment import folder, only
    from airserve.registry import home
    from airserve.web.contents import of_run

    run_dir = folder(name or only(home()), home())
    raise typer.Exit(_report(of_run(run_dir), as_json, to or run_dir / "report.html"))


@command()
def down(name: Name = None) -> None:
    """Stop a deployment; also cleans up after one that was killed."""
    from airserve.place.deployment import down as stop
    from airserve.place.deployment import only
    from airserve.registry import home

    name = name or only(home())
    out.print(f"{name}: stopped." if stop(name, home()) else f"{name}: nothing was running.", highlight=False)


@command()
def schema() -> None:
    """Print the JSON schema of a description, for editors."""
    from airserve.place.description import schema as keys

    show(keys())


@command()
def demo(
    file: Annotated[Path | None, typer.Argument(help="A description; the factory's when none is given.")] = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long each measured run lasts.")] = 30.0,
    seed: Seed = 1,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The main job: train, import, compress, profile, plan, up, drive, report, down."""
    from airserve.demo import run

    found = run(file, seconds=seconds, seed=seed, fresh=fresh, console=note if as_json else out)
    raise typer.Exit(_report(found, as_json))


def _plan(file: Path, seed: int, progress: bool) -> Any:
    from airserve.place.description import read
    from airserve.place.planning import plan as choose
    from airserve.registry import Registry

    return choose(read(file), registry=Registry(), seed=seed, progress=progress)


def _status(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return show(found)
    out.print(f"{found['name']}: {'up' if found['up'] else 'down'}, {len(found['units'])} processes", highlight=False)
    if found["units"]:
        columns = list(dict.fromkeys(key for unit in found["units"].values() for key in unit if key != "error"))
        lines = [[key, *(_cell(unit.get(c)) for c in columns)] for key, unit in found["units"].items()]
        rows(["process", *columns], lines)


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _report(found: dict[str, Any], as_json: bool, to: Path | None = None) -> int:
    """Print a report, save its page where wanted, and say with the exit status how it went."""
    from airserve.web.report import save
    from airserve.web.table import print_report

    page = save(found, to) if to else found.get("page")
    if as_json:
        show(found)
    else:
        print_report(found, out)
        if page:
            out.print(f"The page: {page}", highlight=False)
    return _exit(found)


def _exit(found: dict[str, Any]) -> int:
    if not found["valid"]:
        return INVALID
    return KEPT if all(service["kept"] for service in found["services"]) else NOT_KEPT
