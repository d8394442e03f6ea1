"""The same tables on a terminal and as Markdown."""

import io

from rich.console import Console

from modes_fx.bench.tables import Page, print_tables, tables_markdown

PAGES = [Page("one layer", ("way", "ms"), [("ours", "1.0"), ("theirs", "2.0")])]
FAILURES = ["theirs is wrong"]


def test_markdown_holds_every_row_and_what_failed() -> None:
    assert tables_markdown(PAGES, FAILURES) == [
        "**one layer**",
        "",
        "| way | ms |",
        "|---|--:|",
        "| ours | 1.0 |",
        "| theirs | 2.0 |",
        "",
        "- **Failed**: theirs is wrong.",
    ]


def test_a_terminal_shows_the_same() -> None:
    shown = io.StringIO()
    print_tables(PAGES, FAILURES, Console(file=shown, width=60))
    lines = shown.getvalue()
    assert all(cell in lines for cell in ("one layer", "ours", "theirs", "2.0"))
    assert "FAILED: theirs is wrong" in lines
