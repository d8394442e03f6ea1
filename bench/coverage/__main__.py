"""``python -m modes_fx.bench.coverage``: measure every type and write the report."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modes_fx.bench.coverage.record import Record, Verdict
from modes_fx.bench.coverage.report import write
from modes_fx.bench.coverage.sweep import sweep
from modes_fx.bench.coverage.types import moe_types

STYLES = {Verdict.PASSED: "green", Verdict.LEFT: "yellow", Verdict.EXCLUDED: "dim"}


def main(
    types: Annotated[
        str, typer.Option(help="Types to measure, separated by commas; all by default.")
    ] = "",
    jobs: Annotated[int, typer.Option(help="How many types are measured at once.")] = max(
        (os.cpu_count() or 1), 1
    ),
    timeout: Annotated[float, typer.Option(help="Seconds that one type may take.")] = 600.0,
    out: Annotated[Path, typer.Option(help="Where coverage.md and coverage.json go.")] = Path(
        "docs"
    ),
    records: Annotated[Path, typer.Option(help="Where the record of each type goes.")] = Path(
        "out/coverage"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the records there are, measure the rest.")
    ] = False,
) -> None:
    """Measure which mixture-of-experts types of transformers are rewritten, and how right they are.

    Exits with 1 where a type is silently wrong.
    """
    chosen = types.split(",") if types else moe_types()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("Measuring", total=len(chosen))

        def show(record: Record) -> None:
            style = STYLES.get(record.verdict, "bold red")
            console.print(
                f"[{style}]{record.verdict.value:14}[/] {record.model_type} "
                f"{record.matched}/{len(record.layers)} layers, {record.seconds:.0f} s"
            )
            progress.advance(task)

        done = sweep(chosen, records, jobs=jobs, timeout=timeout, resume=resume, on_record=show)
    out.mkdir(parents=True, exist_ok=True)
    write(done, out / "coverage.md", out / "coverage.json")
    console.print(f"Wrote {out / 'coverage.md'} and {out / 'coverage.json'}", highlight=False)
    if any(record.verdict is Verdict.WRONG for record in done):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
