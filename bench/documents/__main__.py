"""``python -m modes_fx.bench.documents --out docs`` writes ``cli.md`` and ``messages.md``."""

from pathlib import Path
from typing import Annotated

import typer

from modes_fx.bench.documents import command_reference, messages, render_messages


def write_documents(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the pages.")],
) -> None:
    """Write the pages."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cli.md").write_text(command_reference(), encoding="utf-8")
    (out / "messages.md").write_text(render_messages(messages()), encoding="utf-8")


if __name__ == "__main__":
    typer.run(write_documents)
