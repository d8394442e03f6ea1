"""``modes-fx demo``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries


def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for the report and the policy.")
    ] = Path("out/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less: half the time, wider intervals.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json on standard output, and no tables.")
    ] = False,
) -> None:
    """Calibrate, compile, evaluate and time a small trained multimodal model.

    The model ships with modes-fx and answers questions about real handwritten digits; no GPU and no
    download is needed. Takes a few minutes, writes report.html (with plots), report.md, report.json
    and the calibrated policy.

    Ends with exit code 1 where an MoE layer is not rewritten, or where the compiled model differs
    from the original although nothing is skipped.
    """
    from modes_fx.bench.demo import print_summary, run_demo

    quiet_libraries()
    report = run_demo(out, Console(stderr=True), quick=quick)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    print_summary(report, out, Console(stderr=as_json))
    if report.failures:
        raise typer.Exit(FAILED_CHECK)
