"""A progress bar: how much is done of how much, a text that may change, the time left; on terminals only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@final
class Bar:
    """What is told of the work."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def to(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """So much is done, of so much where that is known only now."""
        self._progress.update(self._task, completed=done, total=total, description=text)

    def by(self, steps: float, text: str | None = None) -> None:
        """So much more is done."""
        self._progress.update(self._task, advance=steps, description=text)


@contextmanager
def bar(text: str, total: float | None = None, *, wanted: bool = True, stays: bool = False) -> Iterator[Bar]:
    """A bar on standard error; when all is done it goes, unless it `stays`.

    >>> with bar("epoch 1", total=2) as done:
    ...     done.by(1, "epoch 1, loss 0.5")
    """
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    shown = wanted and console.is_terminal
    with Progress(*columns, console=console, transient=not stays, disable=not shown) as progress:
        yield Bar(progress, progress.add_task(text, total=total))
