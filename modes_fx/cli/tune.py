"""``modes-fx tune``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID


def tune(
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Whose MoE layer to tune for; can be given again. Default: the first."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    notebook: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for trials; a second run goes on there.")
    ] = Path("out/tune"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the configurations found on standard output.")
    ] = False,
) -> None:
    """Find the fastest block sizes of the GPU kernels for a shape, on the GPU at hand.

    Every trial's result is compared with the reference. Can be interrupted and run again. What is
    found is kept in the user's configuration folder and used from then on.

    Example: modes-fx tune --dtype float16
    """
    from modes_fx.bench.gpu import run, tuning

    console = Console(stderr=True)
    device = run.the_gpu()
    kind = run.row_dtype(dtype)
    for shape in run.named_layers(layer or []):
        notes = tuning.Notebook(notebook / f"{run.slug(device)}-{shape.name}-{dtype}.jsonl")
        total = 2 * len(tuning.ROWS) * len(list(tuning.candidates()))
        with Progress(console=console) as progress:
            task = progress.add_task(shape.name, total=total, completed=len(notes))
            advance = partial(_advance, progress, task)
            found = tuning.tune(shape, kind, device, notes, on_trial=advance)
        path = tuning.save(found)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        console.print(f"{shape.name}: written to {path}")


def _advance(progress: Progress, task: TaskID, trial: object) -> None:
    progress.advance(task)
