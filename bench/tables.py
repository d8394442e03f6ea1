"""Tables of a bench, and what failed: on a terminal, and as Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


class Page(NamedTuple):
    """One table: the first column names what its row is of."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_tables(pages: Iterable[Page], failures: Iterable[str], console: Console) -> None:
    """Print tables, then what failed."""
    for page in pages:
        table = Table(title=page.title, box=SIMPLE)
        for place, name in enumerate(page.columns):
            table.add_column(name, justify="right" if place else "left")
        for row in page.rows:
            table.add_row(*row)
        console.print(table)
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False, highlight=False)


def tables_markdown(pages: Iterable[Page], failures: Iterable[str]) -> list[str]:
    """Return the lines of tables, then of what failed."""
    lines: list[str] = []
    for page in pages:
        lines += [f"**{page.title}**", "", "| " + " | ".join(page.columns) + " |"]
        lines.append("|---|" + "--:|" * (len(page.columns) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in page.rows] + [""]
    return lines + [f"- **Failed**: {failure}." for failure in failures]
