"""The command line: one command per verb, no logic.

Exit status: 0 done and kept, 1 promise not kept, 2 bad input, 3 no plan exists, 4 the run is invalid.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from airserve.errors import UserError

KEPT, NOT_KEPT, BAD_INPUT, NO_PLAN, INVALID = range(5)

app = typer.Typer(
    help="Model as a Service over 5G: from data to an answer at the antenna.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models of the registry.", invoke_without_command=True)
app.add_typer(models_app, name="models")

out = Console()
note = Console(stderr=True)

File = Annotated[Path, typer.Argument(help="A description, such as examples/factory/factory.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do again what the registry remembers.")]
Name = Annotated[str | None, typer.Argument(help="The deployment; needless when there is one.")]


def show(data: Any) -> None:
    """JSON on standard output, for programs."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


def rows(columns: list[str], lines: list[list[Any]], title: str | None = None) -> None:
    """A table on standard output, for people."""
    table = Table(*columns, title=title, box=None, title_justify="left", header_style="dim", pad_edge=False)
    for line in lines:
        table.add_row(*["" if cell is None else str(cell) for cell in line])
    out.print(table)


@app.command()
def train(
    net: Annotated[str, typer.Argument(help="A net, with settings if wanted: resnet8,width=32; or a recipe.yaml")],
    task: Annotated[
        str | None, typer.Argument(help="A task: fashion-mnist, digits, tweets; a recipe has its own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all that is random; 0, or what the recipe says.")] = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train a net for a task: from data to a Model in the registry."""
    from airserve.learn.recipe import choose
    from airserve.learn.training import train as learn
    from airserve.registry import Registry

    net, task, seed = choose(net, task, seed)
    _model(learn(net, task, seed=seed, registry=Registry(), fresh=fresh, progress=not as_json), as_json)


@app.command(name="import")
def import_(
    source: Annotated[str, typer.Argument(help="An .onnx file, or a net that comes with weights: efficientnet-lite0")],
    name: Annotated[str | None, typer.Option(help="Its name in the registry.")] = None,
    samples: Annotated[Path | None, typer.Option(help="An .npz file with `inputs` and, where known, `labels`.")] = None,
    as_json: Json = False,
) -> None:
    """Register anyone's ONNX model, or a net with its published weights."""
    from airserve.learn.importing import import_model
    from airserve.registry import Registry

    _model(import_model(source, name, samples, registry=Registry(), progress=not as_json), as_json)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="A Model of the registry.")],
    how: Annotated[str, typer.Argument(help="A compressor.")] = "int8",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Make a smaller variant of a Model, and measure what it costs in score."""
    from airserve.learn.compression import compress as smaller
    from airserve.registry import Registry

    registry = Registry()
    _model(smaller(registry.get(model), how, registry=registry, fresh=fresh, progress=not as_json), as_json)


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models."""
    from airserve.registry import Registry

    if context.invoked_subcommand:
        return
    registry = Registry()
    found = registry.models()
    if as_json:
        return show([_plain(model, registry) for model in found])
    if not found:
        return out.print("No model yet. Make one: airserve train mlp digits")
    rows(
        ["model", "version", "variant", "kB", "score", "aliases"],
        [
            [
                m.name,
                m.version,
                m.variant,
                round(m.path.stat().st_size / 1e3),
                _scores(m),
                ", ".join(registry.aliases(m)),
            ]
            for m in found
        ],
    )


@models_app.command(name="show")
def models_show(
    model: Annotated[str, typer.Argument(help="name, name@3, name@alias, name/int8")], as_json: Json = False
) -> None:
    """Print a Model's signature, scores and lineage."""
    from airserve.registry import Registry

    registry = Registry()
    found = registry.get(model)
    if as_json:
        return show(_plain(found, registry))
    for key, value in _plain(found, registry).items():
        if isinstance(value, dict):
            rows([key, ""], [[f"  {k}", _short(v)] for k, v in value.items()])
        else:
            out.print(f"[dim]{key}[/] {_short(value)}", highlight=False)


@app.command()
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


@app.command()
def plan(file: File, seed: Seed = 0, as_json: Json = False) -> None:
    """Choose variant, cut, encoding and sites for every service; exit status 3 where nothing keeps the promise."""
    from airserve.place.description import read
    from airserve.place.planning import save
    from airserve.web.contents import contents

    factory, made = read(file), _plan(file, seed, not as_json)
    save(made, _name(file))
    _report(contents(_name(file), factory, made), as_json)
    raise typer.Exit(KEPT if made.kept else NO_PLAN)


@app.command()
def simulate(
    file: File,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long the devices ask.")] = 30.0,
    seed: Seed = 1,
    html: Annotated[Path | None, typer.Option(help="Write a page with distributions by span and shares.")] = None,
    as_json: Json = False,
) -> None:
    """Run a description in the twin; the same seed gives the same, to the byte, but for how fast it ran."""
    from airserve.network import twin
    from airserve.place.description import read
    from airserve.place.planning import flows, known_or_planned
    from airserve.web.simulation import contents, save

    factory = read(file)
    choices = known_or_planned(factory, file, _name(file), progress=not as_json)
    work = flows(factory, choices)
    outcome = twin.run(factory.network, work, until_s=seconds, seed=seed)
    found = outcome.summary()
    if html is not None:
        promises = {one.name: one.promise.plain() for one in factory.services if one.promise is not None}
        save(contents(_name(file), factory.network, work, outcome, promises, seconds, seed), html)
    if as_json:
        return show({**found, "realtime_factor": round(outcome.realtime_factor, 1)})
    rows(
        ["service", "sent", "answered", "p50 ms", "p90", "p99", "max"],
        [[s["name"], s["sent"], s["answered"], *(_digits(s["latency_ms"][k]) for k in ("p50", "p90", "p99", "max"))]
         for s in found["services"]],
    )  # fmt: skip
    rows(
        ["slice", "PRBs up", "Mbit/s up", "PRBs down", "Mbit/s down"],
        [[s["name"], *(x for way in ("up", "down") for x in (f"{s[way]['share_used']:.1%}", _digits(s[way]["mbps"])))]
         for s in found["slices"]],
    )  # fmt: skip
    out.print(f"{outcome.realtime_factor:.0f} times real time; simulated, no packet was sent")
    if html is not None:
        out.print(f"page: {html}", highlight=False, soft_wrap=True)


@app.command()
def admit(
    file: File,
    name: Annotated[str, typer.Argument(help="The new slice's name.")],
    devices: Annotated[int, typer.Option(help="How many devices it is for.")],
    up_mbps: Annotated[float, typer.Option(help="Of each device, to the site.")] = 0.0,
    down_mbps: Annotated[float, typer.Option(help="Of each device, back.")] = 0.0,
    dedicated: Annotated[bool, typer.Option("--dedicated", help="Never lent, even while idle.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Book a slice beside those of a description: its share, or what share could be had."""
    from airserve.network.admission import Booking, capacity
    from airserve.network.admission import admit as book
    from airserve.place.description import read

    network = read(file).network
    there = capacity(network, seed)
    made = book(network.slices, name, Booking(devices, up_mbps, down_mbps, dedicated), there)
    if as_json:
        return show({"slice": made.model_dump(exclude_unset=True), "capacity": vars(there)})
    out.print(
        f"{name} fits: min {made.min:g} % of the PRBs{', dedicated' if dedicated else ''}; the whole cell carries "
        f"{there.up_mbps:.0f} Mbit/s up, {there.down_mbps:.0f} down for devices at random positions.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
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

    factory, name, registry = read(file), _name(file), Registry()
    made = known_plan(factory, file, name, registry)
    if made is None:
        made = _plan(file, 0, not as_json)
        save(made, name, registry)
    if not made.kept:
        for limit in made.limits:
            note.print(limit, highlight=False, soft_wrap=True)
        raise typer.Exit(NO_PLAN)
    with waiting(f"up {name}", not as_json) as progress:
        running = start(
            wanted(factory, made, registry=registry, name=name, port=port, seed=seed), registry.home, progress
        )
    keep(running.run_dir, factory, made)
    _status(look(name, registry.home), as_json)


@app.command()
def status(name: Name = None, as_json: Json = False) -> None:
    """What is wanted and what runs."""
    from airserve.place.deployment import only
    from airserve.place.deployment import status as look
    from airserve.registry import home

    _status(look(name or only(home()), home()), as_json)


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="An .onnx file, a folder in Triton's layout, a model's name.")],
    host: Annotated[str, typer.Option(help="Where it listens; beyond this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; one a core is best.")] = 1,
    grpc_port: Annotated[int, typer.Option(min=-1, max=65_535, help="For gRPC (extra `grpc`); -1: none.")] = -1,
    keys: Annotated[str, typer.Option(help="A file of tenants, as `airserve key` makes it.")] = "",
    jwks: Annotated[str, typer.Option(help="The public keys of an OpenID issuer, for signed tokens.")] = "",
    issuer: Annotated[str, typer.Option(help="Whom tokens must come from.")] = "",
    audience: Annotated[str, typer.Option(help="Whom tokens must be meant for.")] = "",
    tls_cert: Annotated[str, typer.Option(help="A certificate, PEM.")] = "",
    tls_key: Annotated[str, typer.Option(help="Its key, PEM.")] = "",
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait in a worker.")] = 256,
    deadline_s: Annotated[float, typer.Option(min=0.001, help="Where a request names none.")] = 30.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line of JSON for every request.")] = False,
) -> None:
    """Serve models over the Open Inference Protocol V2, as a service of its own."""
    from airserve.serve.configuration import Configuration
    from airserve.serve.starting import become

    become(
        Configuration(
            tuple(models),
            host=host,
            port=port,
            workers=workers,
            grpc_port=grpc_port,
            keys=keys,
            jwks=jwks,
            issuer=issuer,
            audience=audience,
            tls_cert=tls_cert,
            tls_key=tls_key,
            queue=queue,
            deadline_s=deadline_s,
            access_log=access_log,
        )
    )


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="Where a service or a site answers.")] = "http://127.0.0.1:8000",
    key: Annotated[str, typer.Option(envvar="AIRSERVE_KEY", help="A key, where one is wanted.")] = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """What a service does now, until Ctrl-C."""
    from rich.live import Live

    from airserve.serve.watching import watch

    with Live(console=out, auto_refresh=False, transient=not once) as live:
        for found in watch(url, key, every):
            table = Table(
                "model", "version", "a second", "failed a second", "queue ms", "compute ms", "in all", box=None
            )
            for row in found:
                table.add_row(row.model, row.version, *map(_digits, row[2:6]), str(row.answered))
            live.update(table, refresh=True)
            if once:
                return


@app.command()
def key(
    tenant: Annotated[str, typer.Argument(help="Who is to have it.")],
    to: Annotated[Path, typer.Option(help="The file of tenants; it holds hashes alone.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="What it may ask; all when none is given.")
    ] = None,
    rate_hz: Annotated[float | None, typer.Option(min=0.001, help="Requests a second.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests under way.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload models.")] = False,
) -> None:
    """Make a key for `airserve serve`; it is shown once."""
    from airserve.serve.guarding import new_key

    limits = {"models": models or None, "rate_hz": rate_hz, "concurrency": concurrency, "admin": admin or None}
    out.print(new_key(to, tenant, **limits), highlight=False, markup=False)


@app.command()
def drive(
    name: Name = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long the devices ask.")] = 30.0,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Let every device send its real inputs at its rate, and measure."""
    from airserve.place.deployment import folder, load, only
    from airserve.registry import home
    from airserve.serve.driving import drive as ask
    from airserve.web.contents import measured

    name = name or only(home())
    with waiting(f"drive {name}", not as_json) as progress:
        ran = ask(load(name, home()), seconds=seconds, seed=seed, run_dir=folder(name, home()), progress=progress)
    found = measured(load(name, home()), ran)
    if as_json:
        show(found)
    else:
        rows(
            ["service", "sent", "answered", "failed", "p50 ms", "measured", "promise", "verdict"],
            [[s["name"], s["sent"], s["answered"], s["failed"], _digits(s["measured_p50_ms"]),
              f"p{s['percentile']:g} {_digits(s['measured_ms'])} ms", f"{s['promise_ms']:g} ms", s["verdict"]]
             for s in found["services"]],
        )  # fmt: skip
        out.print(
            f"{found['invalid_why'] or 'The run is valid.'} Promised, predicted and measured: airserve report {name}"
        )
    raise typer.Exit(_exit(found))


@app.command()
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


@app.command()
def down(name: Name = None) -> None:
    """Stop a deployment; also cleans up after one that was killed."""
    from airserve.place.deployment import down as stop
    from airserve.place.deployment import only
    from airserve.registry import home

    name = name or only(home())
    out.print(f"{name}: stopped." if stop(name, home()) else f"{name}: nothing was running.", highlight=False)


@app.command()
def traces(
    scenario: Annotated[str, typer.Argument(help="inf-dh, inf-sl, umi, ... of TR 38.901")],
    ues: Annotated[int, typer.Option(min=1)] = 50,
    snapshots: Annotated[int, typer.Option(min=2)] = 100,
    carrier_ghz: float = 3.5,
    bandwidth_mhz: int = 100,
    scs_khz: int = 30,
    gnb_ports: int = 32,
    ue_antennas: int = 4,
    speed_ms: Annotated[float, typer.Option(min=0, help="Of the UEs, in m/s.")] = 0.83,
    snapshot_ms: Annotated[float, typer.Option(min=0.1, help="From one snapshot to the next.")] = 10.0,
    seed: Seed = 1,
) -> None:
    """Make radio traces with Sionna (extra `radio`); stopped, it goes on when it is called again."""
    from airserve.network.tracing import make_for

    path = make_for(
        scenario,
        ues=ues,
        snapshots=snapshots,
        seed=seed,
        snapshot_s=snapshot_ms / 1e3,
        speed_ms=speed_ms,
        carrier_ghz=carrier_ghz,
        bandwidth_mhz=bandwidth_mhz,
        scs_khz=scs_khz,
        gnb_ports=gnb_ports,
        ue_antennas=ue_antennas,
    )
    out.print(f"{path}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a description, for editors."""
    from airserve.place.description import schema as keys

    show(keys())


@app.command()
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


@contextmanager
def waiting(text: str, wanted: bool) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal, told how much is done of how much."""
    with Progress(console=note, transient=True, disable=not wanted) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _name(file: Path) -> str:
    return file.stem


def _plan(file: Path, seed: int, progress: bool) -> Any:
    from airserve.place.description import read
    from airserve.place.planning import plan as choose
    from airserve.registry import Registry

    return choose(read(file), registry=Registry(), seed=seed, progress=progress)


def _model(model: Any, as_json: bool) -> None:
    from airserve.registry import Registry

    if as_json:
        return show(_plain(model, Registry()))
    out.print(
        f"[bold]{model.reference}[/]  {_scores(model)}  {model.path.stat().st_size / 1e3:.0f} kB", highlight=False
    )


def _plain(model: Any, registry: Any) -> dict[str, Any]:
    from airserve.contract import to_plain

    said: dict[str, Any] = to_plain(model)
    return {"reference": model.reference, **said, "aliases": registry.aliases(model)}


def _scores(model: Any) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in model.scores.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _status(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return show(found)
    out.print(f"{found['name']}: {'up' if found['up'] else 'down'}, {len(found['units'])} processes", highlight=False)
    if found["units"]:
        columns = list(dict.fromkeys(key for unit in found["units"].values() for key in unit if key != "error"))
        rows(["process", *columns], [[key, *(unit.get(c) for c in columns)] for key, unit in found["units"].items()])


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


def main() -> None:
    """The entry point: errors for users are one sentence, Ctrl-C is quiet."""
    try:
        app()
    except UserError as error:
        note.print(f"airserve: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        note.print("airserve: interrupted; what was started has been stopped.")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("AIRSERVE_DEBUG"):
            raise
        from airserve.registry import home

        crash = home() / "crash.log"
        crash.parent.mkdir(parents=True, exist_ok=True)
        crash.write_text(traceback.format_exc())
        note.print(
            f"airserve: a fault of airserve itself ({type(error).__name__}); see {crash} and report it.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(70)


if __name__ == "__main__":
    main()
