"""The command line: ``modes-fx`` or ``python -m modes_fx``, one module for each sub-command."""

import typer

from modes_fx.cli.bench import bench
from modes_fx.cli.calibrate import calibrate
from modes_fx.cli.demo import demo
from modes_fx.cli.errors import ReportingGroup
from modes_fx.cli.eval import evaluate
from modes_fx.cli.explain import explain
from modes_fx.cli.export import export, verify
from modes_fx.cli.tune import tune

app = typer.Typer(
    name="modes-fx",
    cls=ReportingGroup,
    help="Skip the experts a multimodal token does not need, inside torch.compile.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 cannot be done as asked. "
    "Every command has --help and --json.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(calibrate)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(explain)
app.command()(export)
app.command()(verify)
app.command()(tune)
app.add_typer(bench, name="bench")

__all__ = ["app"]
