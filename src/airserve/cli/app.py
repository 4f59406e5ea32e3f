"""What all commands share: the application, its exit statuses, options and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

KEPT, NOT_KEPT, BAD_INPUT, NO_PLAN, INVALID = range(5)

app = typer.Typer(
    help="Model as a Service over 5G: from data to an answer at the antenna.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ANY_WIDTH = 10_000  # columns of a table that no terminal cuts

out = Console()
note = Console(stderr=True)

File = Annotated[Path, typer.Argument(help="A description, such as examples/factory/factory.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all that is random.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do again what the registry remembers.")]
Name = Annotated[str | None, typer.Argument(help="The deployment; needless when there is one.")]


def show(data: Any) -> None:
    """JSON on standard output, for programs."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


def rows(columns: list[str], lines: list[list[Any]], title: str | None = None) -> None:
    """A table on standard output, for people."""
    headers = [Column(name, overflow="fold") for name in columns]
    table = Table(*headers, title=title, box=None, title_justify="left", header_style="dim", pad_edge=False)
    for line in lines:
        table.add_row(*["" if cell is None else str(cell) for cell in line])
    out.print(table, width=None if out.is_terminal else ANY_WIDTH)


def digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
