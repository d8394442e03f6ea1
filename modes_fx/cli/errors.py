"""How a command ends that cannot do what it was asked."""

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from modes_fx.errors import MatchError

FAILED_CHECK = 1
CANNOT = 2


class ReportingGroup(TyperGroup):
    """Turns an error of ours into one message on standard error; others are bugs, and raised."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            Exit: it raised an error of ours.
        """
        try:
            return super().invoke(ctx)
        except MatchError as error:
            raise _exit(error, FAILED_CHECK) from None
        except ValueError as error:
            if not _is_ours(error):
                raise
            raise _exit(error, CANNOT) from None


def _exit(error: Exception, code: int) -> typer.Exit:
    typer.echo(f"Error: {error}", err=True)
    return typer.Exit(code)


def _is_ours(error: Exception) -> bool:
    """Whether this package raised the error, rather than something it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("modes_fx")
