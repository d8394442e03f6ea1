"""``modes-fx bench end-to-end``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.cli.bench.options import CompilerName
from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries

BATCHES = [1, 4, 16]


def end_to_end(
    model: Annotated[
        str,
        typer.Argument(help='A local folder, the id of a hub repository, or "demo".'),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of its policy. Without: a preset, for speed."),
    ] = None,
    batch: Annotated[list[int], typer.Option(min=1, help="Prompts of a call.")] = BATCHES,
    image_side: Annotated[
        int | None,
        typer.Option(
            min=16, help="Resize images to this side, in pixels; the processor may again."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is timed.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="That torch may use.")] = 1,
    compiler: Annotated[
        CompilerName,
        typer.Option(help="eager runs captured graphs as they are: quick, for a first try."),
    ] = CompilerName.INDUCTOR,
    compilation: Annotated[
        bool, typer.Option(help="Measure compiling, cold and warm, and memory, in own processes.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for end_to_end.md, .json, .png.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything measured on standard output.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code of the repository.")
    ] = False,
) -> None:
    """Time generate with images: first token and decoding, transformers' ways and ours.

    Every prompt is a question about an image; all ways decode into a static cache and take turns.
    Ours runs with nothing skipped and at every target of the policy. Then each compiled way is
    compiled in processes of its own, with empty caches and with filled ones.

    Example: modes-fx bench end-to-end demo --batch 1 --compiler eager --no-compilation
    """
    from modes_fx.bench.end_to_end import EndToEndPlan, bench_end_to_end
    from modes_fx.bench.end_to_end.prompts import Source
    from modes_fx.bench.end_to_end.render import print_end_to_end, save_end_to_end

    quiet_libraries()
    plan = EndToEndPlan(
        source=Source(model, image_side, trust_remote_code),
        policy=policy,
        batches=batch,
        rounds=rounds,
        threads=threads,
        compiler=compiler.value,
        compilation=compilation,
    )
    with Console(stderr=True).status("") as status:
        measured = bench_end_to_end(plan, status.update)
    if out is not None:
        save_end_to_end(measured, out)
    if json:
        typer.echo(measured.model_dump_json(indent=2))
    else:
        print_end_to_end(measured, Console())
    if measured.failures:
        raise typer.Exit(FAILED_CHECK)
