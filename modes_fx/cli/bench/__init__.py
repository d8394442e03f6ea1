"""``modes-fx bench``: one module for each benchmark."""

import typer

from modes_fx.cli.bench.end_to_end import end_to_end
from modes_fx.cli.bench.gpu import gpu
from modes_fx.cli.bench.layer import layer
from modes_fx.cli.bench.model import model
from modes_fx.cli.bench.options import ListingCommand
from modes_fx.cli.bench.scaling import scaling

bench = typer.Typer(
    help="Time one layer, a whole model or its generation, against other ways to run them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
bench.command(cls=ListingCommand)(layer)
bench.command(cls=ListingCommand)(model)
bench.command(cls=ListingCommand)(end_to_end)
bench.command(cls=ListingCommand)(scaling)
bench.command(cls=ListingCommand)(gpu)

__all__ = ["bench"]
