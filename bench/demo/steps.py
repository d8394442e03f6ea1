"""What the user sees while the demo runs: each step with a bar, then how long it took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[float], None]
"""To be called with the share of a step that is done."""


class Steps:
    """Runs steps one after another.

    Attributes:
        seconds: what each finished step took, by name.
    """

    def __init__(self, console: Console, total: int) -> None:
        """Show ``total`` steps on a console."""
        self._console = console
        self._total = total
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, doing: str, *, bar: bool = True) -> Iterator[Advance]:
        """Show a step while the ``with`` block runs.

        Args:
            name: its key in ``seconds``.
            doing: what it does, in words.
            bar: False where the block shows progress by itself.
        """
        number = f"[{len(self.seconds) + 1}/{self._total}]"
        started = time.perf_counter()
        if bar:
            with self._bar(f"{number} {doing}") as advance:
                yield advance
        else:
            self._console.print(number, doing, markup=False, highlight=False)
            yield lambda done: None
        self.seconds[name] = time.perf_counter() - started
        done = f"{number} {doing}: {self.seconds[name]:.0f} s"
        self._console.print(done, markup=False, highlight=False)

    def say(self, line: str) -> None:
        """Print a step's result."""
        self._console.print(f"      {line}", markup=False, highlight=False)

    @contextmanager
    def _bar(self, doing: str) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        shown = self._console.is_terminal
        with Progress(
            *columns, console=self._console, transient=True, disable=not shown
        ) as progress:
            task = progress.add_task(doing, total=1.0)
            yield lambda done: progress.update(task, completed=done)
