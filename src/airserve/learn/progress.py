"""A progress bar with a changing text and the time left, on terminals only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[str, float], None]


@contextmanager
def bar(wanted: bool, text: str, total: float) -> Iterator[Report]:
    """A bar of so many steps; the function it gives sets the text and advances by so many.

    >>> with bar(False, "epoch 1", total=2) as report:
    ...     report("epoch 1, loss 0.5", 1)
    """
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda text, steps: progress.update(task, description=text, advance=steps)
