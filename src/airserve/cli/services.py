"""The commands of a service of its own: serve, gateway, top, key."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from airserve.cli.app import Json, app, digits, out, rows, show

command = partial(app.command, rich_help_panel="A service of its own")


@command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="An .onnx file, a folder in Triton's layout, a model's name, or what `import` reads."),
    ],
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
    running: Annotated[int, typer.Option(min=1, help="Texts that a language model generates side by side.")] = 8,
    cache_mb: Annotated[int, typer.Option(min=1, help="Memory for their KV caches, in each worker.")] = 1024,
    knowledge: Annotated[str, typer.Option(help="A folder for knowledge bases and assistants (CAMARA).")] = "",
    access_log: Annotated[bool, typer.Option("--access-log", help="A line of JSON for every request.")] = False,
    otel: Annotated[bool, typer.Option("--otel", help="Spans for OpenTelemetry, by OTLP (extra `otel`).")] = False,
) -> None:
    """Serve models over the Open Inference Protocol V2, as a service of its own."""
    from airserve.serve.configuration import Configuration
    from airserve.serve.starting import become, imported_first

    if any(imported_first(model) for model in models):
        from airserve.learn.importing import served  # what another tool made is imported first

        models = [served(model) for model in models]
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
            running=running,
            cache_mb=cache_mb,
            knowledge=knowledge,
            access_log=access_log,
            otel=otel,
        )
    )


@command()
def gateway(
    routes: Annotated[list[str], typer.Argument(help="A file of routes in YAML, or the URLs of sites.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT, in place of what the file says.")] = "",
    status: Annotated[bool, typer.Option("--status", help="Tell how the gateway of this file or URL does.")] = False,
    as_json: Json = False,
) -> None:
    """One address before several sites: weights, canaries and mirrors; dead sites are out in under a second."""
    from airserve.serve.routes import RoutesError, address, read, to_sites

    urls = all("//" in one for one in routes)
    if not urls and len(routes) > 1:
        raise RoutesError(f"give one file of routes, or URLs alone, which start with http://; not {' '.join(routes)}.")
    if status:
        host, port = ("", 0) if urls else (found := read(Path(routes[0]))).watch or (found.host, found.port)
        return _gateway_status(routes[0] if urls else f"http://{host}:{port}", as_json)
    made = to_sites(routes) if urls else read(Path(routes[0]))
    if listen:
        host, port = address(listen, "--listen")
        made = replace(made, host=host, port=port)
        made.check()
    import uvloop

    from airserve.serve.relaying import run

    uvloop.run(run(made, lambda line: print(line, flush=True)))


def _gateway_status(url: str, as_json: bool) -> None:
    from airserve.serve.relaying import status

    found = status(url)
    if as_json:
        return show(found)
    columns = ["model", "protocol", "site", "as", "share", "state", "under way", "answered", "failed"]
    lines = []
    for model in found["models"]:
        for site in model["sites"]:
            share = f"mirror {site['mirror']:g}" if "mirror" in site else f"{site['weight']:g}"
            counted = [site[key] for key in ("state", "under_way", "answered", "failed")]
            lines.append([model["model"], model["protocol"], site["url"], site["model"], share, *counted])
    rows(columns, lines)
    total = {key: sum(model[key] for model in found["models"]) for key in ("requests", "retries", "ejections")}
    out.print(", ".join(f"{count} {key}" for key, count in total.items()), highlight=False)


@command()
def top(
    url: Annotated[str, typer.Argument(help="Where a service or a site answers.")] = "http://127.0.0.1:8000",
    key: Annotated[str, typer.Option(envvar="AIRSERVE_KEY", help="A key, where one is wanted.")] = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """What a service does now, until Ctrl-C."""
    from rich.live import Live

    from airserve.serve.watching import Row, watch

    def seen(found: list[Row]) -> Table:
        table = Table("model", "version", "a second", "failed a second", "queue ms", "compute ms", "in all", box=None)
        for row in found:
            table.add_row(row.model, row.version, *map(digits, row[2:6]), str(row.answered))
        return table

    looks = watch(url, key, every)
    if once:
        return out.print(seen(next(looks)))
    with contextlib.suppress(KeyboardInterrupt), Live(console=out, auto_refresh=False, transient=True) as live:
        for found in looks:
            live.update(seen(found), refresh=True)


@command()
def key(
    tenant: Annotated[str, typer.Argument(help="Who is to have it.")],
    to: Annotated[Path, typer.Option(help="The file of tenants; it holds hashes alone.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="What it may ask; all when none is given.")
    ] = None,
    rate_hz: Annotated[float | None, typer.Option(min=0.001, help="Requests a second.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests under way.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload models.")] = False,
    slice_: Annotated[str, typer.Option("--slice", help="On which its devices come: a label of its metrics.")] = "",
) -> None:
    """Make a key for `airserve serve`; it is shown once."""
    from airserve.serve.tenants import new_key

    limits = {
        "models": models or None, "rate_hz": rate_hz, "concurrency": concurrency, "admin": admin or None,
        "slice": slice_ or None,
    }  # fmt: skip
    out.print(new_key(to, tenant, **limits), highlight=False, markup=False)
