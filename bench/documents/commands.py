"""The reference of the command line, as typer's own generator writes it."""

from typer.cli import app as typer_command
from typer.testing import CliRunner

NOTE = "<!-- Made by `make docs`; do not edit. -->\n"


def command_reference() -> str:
    """Return every command with its arguments and options, as Markdown.

    Raises:
        RuntimeError: typer could not write it.
    """
    words = ["modes_fx.cli", "utils", "docs", "--name", "modes-fx"]
    made = CliRunner().invoke(typer_command, words)
    if made.exit_code:
        raise RuntimeError(f"typer {' '.join(words)} failed: {made.output}")
    title, _, rest = made.stdout.strip().partition("\n")
    return f"{title}\n\n{NOTE}{rest}\n"
