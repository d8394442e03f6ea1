"""``modes-fx bench scaling``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.cli.bench.options import SKIPS, Dtype, cache_bytes
from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries

TOKENS, BATCHES, EXPERTS, LAYERS = [64, 256, 1024], [1, 4, 16, 64], [8, 16, 32, 64], [1, 2, 4, 8]


def scaling(
    shape: Annotated[
        str, typer.Option(help="The layer: a name from modes_fx.bench.shapes, such as small.")
    ] = "small",
    tokens: Annotated[list[int], typer.Option(min=1, help="Lengths of a prompt.")] = TOKENS,
    batch: Annotated[
        list[int], typer.Option(min=1, help="Sequences that decode one token each.")
    ] = BATCHES,
    experts: Annotated[list[int], typer.Option(min=1, help="Experts of a layer.")] = EXPERTS,
    layers: Annotated[
        list[int], typer.Option(min=1, help="Layers, called one after another.")
    ] = LAYERS,
    prompt: Annotated[
        int, typer.Option(min=1, help="Tokens where experts or layers are varied.")
    ] = 256,
    skip: Annotated[
        list[float],
        typer.Option(min=0, max=0.999, help="Skip ratios: shares of the (token, expert) pairs."),
    ] = SKIPS,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and tokens.")] = Dtype.BF16,
    threads: Annotated[int, typer.Option(min=1, help="That torch may use.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is timed.")] = 7,
    cache_mib: Annotated[
        float | None, typer.Option(help="The last-level cache; asks the system.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for scaling.md, .json, .png.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything measured on standard output.")
    ] = False,
) -> None:
    """Time how the cost of experts grows with tokens, batch, experts and layers.

    One of them is varied at a time; ours and transformers' two ways take turns at every place, with
    weights that come from memory as far as 1 GB of copies allows. An implementation whose output
    differs gets no speed-up, and the exit code is 1.

    Example: modes-fx bench scaling --shape tiny --tokens 64 256 --experts 8 16
    """
    import torch

    from modes_fx.bench.scaling import ScalingPlan, bench_scaling
    from modes_fx.bench.scaling.render import print_scaling, save_scaling
    from modes_fx.bench.shapes import find_shape

    quiet_libraries()
    plan = ScalingPlan(
        shape=find_shape(shape),
        tokens=tokens,
        batches=batch,
        experts=experts,
        layers=layers,
        prompt=prompt,
        skips=skip,
        dtype=getattr(torch, dtype.of_torch),
        threads=threads,
        rounds=rounds,
        cache=cache_bytes(cache_mib),
    )
    with Console(stderr=True).status("") as status:
        measured = bench_scaling(plan, status.update)
    if out is not None:
        save_scaling(measured, out)
    if json:
        typer.echo(measured.model_dump_json(indent=2))
    else:
        print_scaling(measured, Console())
    if measured.failures:
        raise typer.Exit(FAILED_CHECK)
