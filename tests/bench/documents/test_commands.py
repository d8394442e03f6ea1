"""docs/cli.md is what the command line says of itself."""

from pathlib import Path

from modes_fx.bench.documents.commands import command_reference

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    page = command_reference()
    assert "## `modes-fx calibrate`" in page
    assert PAGE.read_text(encoding="utf-8") == page, "run `make docs`"
