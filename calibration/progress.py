"""What the user sees of a calibration: one line at the start, then bars with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Stage = Callable[[str], Callable[[float], None]]
"""Starts a stage by name and returns what is to be called with the share of it that is done."""


@contextmanager
def shown_progress(summary: str, *, show: bool) -> Iterator[Stage]:
    """Show a summary, then a bar for each stage that the ``with`` block starts.

    Args:
        summary: the line at the start.
        show: whether anything is written at all; what is goes to standard error.
    """
    console = Console(stderr=True, quiet=not show)
    console.print(summary, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeRemainingColumn(elapsed_when_finished=True), console=console
    ) as bar:

        def start(name: str) -> Callable[[float], None]:
            stage = bar.add_task(name, total=1.0)
            return lambda done: bar.update(stage, completed=done)

        yield start
