"""``modes-fx bench model``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.bench.shapes import DEFAULT_SHAPE
from modes_fx.cli.bench.options import LAYOUTS, SKIPS, CompilerName, Dtype, LayoutName, cache_bytes
from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries


def model(
    shape: Annotated[
        str, typer.Option(help="The model: a name from modes_fx.bench.model.build.")
    ] = DEFAULT_SHAPE,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            help="transformers' ways to compare with: hf_eager, hf_grouped, hf_eager_compiled, "
            "hf_grouped_compiled, hf_batched_compiled; by default all of them."
        ),
    ] = None,
    layers: Annotated[
        int, typer.Option(min=1, help="Of the language model; 1.2 GB each at full size.")
    ] = 2,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 1024,
    skip: Annotated[
        list[float],
        typer.Option(min=0, max=0.999, help="Skip ratios: shares of the (token, expert) pairs."),
    ] = SKIPS,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.BF16,
    threads: Annotated[int, typer.Option(min=1, help="That torch may use.")] = 1,
    layout: Annotated[list[LayoutName], typer.Option(help="Of our weights.")] = LAYOUTS,
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is timed.")] = 5,
    cache_mib: Annotated[
        float | None, typer.Option(help="The last-level cache; asks the system.")
    ] = None,
    compiler: Annotated[
        CompilerName,
        typer.Option(help="eager runs captured graphs as they are: quick, for a first try."),
    ] = CompilerName.INDUCTOR,
    json: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for everything measured.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for the tables as Markdown.")
    ] = None,
) -> None:
    """Time prefill and decode of a model with an image in its prompt: ours and transformers'.

    The model has the layers of a real one, few of them, with random weights. transformers' best way
    is found by measurement for each phase; what would be left of its time with experts at the
    machine's limits bounds any speed-up. Compiling takes some minutes.

    Example: modes-fx bench model --layers 2 --skip 0 0.88
    """
    import torch

    from modes_fx.bench.model import ModelPlan, bench_model
    from modes_fx.bench.model.build import find_model
    from modes_fx.bench.model.render import print_bench, to_markdown
    from modes_fx.bench.model.ways import HF_WAYS

    quiet_libraries()
    plan = ModelPlan(
        shape=find_model(shape),
        baselines=list(HF_WAYS) if baselines is None else baselines,
        layers=layers,
        prompt=prompt,
        skips=skip,
        dtype=getattr(torch, dtype.of_torch),
        threads=threads,
        layouts=[one.value for one in layout],
        rounds=rounds,
        cache=cache_bytes(cache_mib),
        compiler=compiler.value,
    )
    with Console(stderr=True).status("") as status:
        measured = bench_model(plan, status.update)
    if json is not None:
        json.write_text(measured.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(to_markdown(measured), encoding="utf-8")
    print_bench(measured, Console())
    if measured.failures:
        raise typer.Exit(FAILED_CHECK)
