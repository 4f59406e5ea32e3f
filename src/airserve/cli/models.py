"""The commands of Models: train, import, compress, models."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from airserve.cli.app import Fresh, Json, app, out, rows, show

models_app = typer.Typer(help="The models of the registry.", invoke_without_command=True)
app.add_typer(models_app, name="models", rich_help_panel="Models")

command = partial(app.command, rich_help_panel="Models")


@command()
def train(
    net: Annotated[str, typer.Argument(help="A net, with settings if wanted: resnet8,width=32; or a recipe.yaml")],
    task: Annotated[
        str | None, typer.Argument(help="A task: fashion-mnist, digits, tweets; a recipe has its own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of all that is random; 0, or what the recipe says.")
    ] = None,
    fresh: Fresh = False,
    threads: Annotated[str, typer.Option(help="For a step: a number, or auto, which measures.")] = "1",
    devices: Annotated[int, typer.Option(min=1, help="Processes that divide each batch.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a net for a task: from data to a Model in the registry."""
    from airserve.learn.recipe import choose

    net, task, seed = choose(net, task, seed)
    from airserve.learn.training import train as learn
    from airserve.registry import Registry

    made = learn(
        net, task, seed=seed, registry=Registry(), fresh=fresh, progress=not as_json, threads=threads, devices=devices
    )
    if (step_ms := made.lineage.get("step_ms")) and not as_json:
        timed = ", ".join(f"{ms:g} ms a step with {many}" for many, ms in step_ms.items())
        out.print(f"threads: {made.lineage['threads']} ({timed})", highlight=False)
    _model(made, as_json)


@command(name="import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="An .onnx, .keras or .skops file, FILE.py:FUNCTION for a torch module, a folder in Hugging Face's "
            "layout, or a net that comes with weights: efficientnet-lite0"
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Its name in the registry.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with `inputs` and, where known, `labels`. The first `calibration` rows, a third of them "
            "up to 200 where it does not say, are for compress; the others score."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open a file that may run its maker's code: a pickle.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register anyone's model, or a net with its published weights."""
    from airserve.learn.importing import import_model
    from airserve.registry import Registry

    model = import_model(source, name, samples, registry=Registry(), trust=trust)
    _model(model, as_json)


@command()
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


def _model(model: Any, as_json: bool) -> None:
    from airserve.registry import Registry

    if as_json:
        return show(_plain(model, Registry()))
    out.print(
        f"[bold]{model.reference}[/]  {_scores(model)}  {model.path.stat().st_size / 1e3:.0f} kB", highlight=False
    )


def _plain(model: Any, registry: Any) -> dict[str, Any]:
    from airserve.contract import to_plain
    from airserve.place.choosing import chosen, cores

    said: dict[str, Any] = to_plain(model)
    runtimes = {str(count): to_plain(chosen(model, registry, count)) for count in range(1, cores() + 1)}
    return {"reference": model.reference, **said, "aliases": registry.aliases(model), "runtimes": runtimes}


def _scores(model: Any) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in model.scores.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."
