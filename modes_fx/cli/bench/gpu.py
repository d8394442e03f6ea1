"""``modes-fx bench gpu``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown


def gpu(
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Whose MoE layer to time; can be given again. Default: the first."),
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Numbers of tokens. Default: 1 to 32768.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Samples of each way.")] = 20,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for report.md and report.json.")
    ] = Path("out/gpu"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json on standard output, and no tables.")
    ] = False,
) -> None:
    """Time the GPU kernels of one MoE layer against other ways to run it, on the GPU at hand.

    Compares what each way computes first, and reports nothing where one is wrong. Needs a GPU; for
    checks that need none, see make kernels-report.

    Example: modes-fx bench gpu --tokens 4096 --tokens 1
    """
    from modes_fx.bench.gpu import run

    console = Console(stderr=True)
    device = run.the_gpu()
    layers = run.named_layers(layer or [])
    with console.status("Comparing and timing") as status:
        report = run.run_benchmark(
            layers,
            device,
            tokens=tokens or (*run.PREFILL_TOKENS, *run.DECODE_TOKENS),
            rounds=rounds,
            on_case=lambda case: status.update(f"{case.layer}, {case.tokens} tokens done"),
        )
    run.write(report, out)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(Markdown(run.render(report)))
    console.print(f"Written to {out}")
