"""``modes-fx bench layer``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.bench.shapes import DEFAULT_SHAPE
from modes_fx.cli.bench.options import LAYOUTS, SKIPS, Dtype, LayoutName, cache_bytes
from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries

TOKENS = [1, 16, 512, 2048]


def layer(
    shape: Annotated[
        str, typer.Option(help="The layer: a name from modes_fx.bench.shapes, such as small.")
    ] = DEFAULT_SHAPE,
    tokens: Annotated[list[int], typer.Option(min=1, help="Numbers of tokens.")] = TOKENS,
    skip: Annotated[
        list[float],
        typer.Option(min=0, max=0.999, help="Skip ratios: shares of the (token, expert) pairs."),
    ] = SKIPS,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and tokens.")] = Dtype.BF16,
    threads: Annotated[int, typer.Option(min=1, help="That torch may use.")] = 1,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compare with: hf_eager, hf_grouped, hf_batched_compiled, hf_zeroed, "
            "which are the default, and where they are installed openvino and onnxruntime."
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also with the experts quantised to int8 (needs torchao)."),
    ] = False,
    layout: Annotated[list[LayoutName], typer.Option(help="Of our weights.")] = LAYOUTS,
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is timed.")] = 9,
    cache_mib: Annotated[
        float | None,
        typer.Option(help="The last-level cache, which the weights must not fit; asks the system."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for everything measured.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for the tables as Markdown.")
    ] = None,
) -> None:
    """Time the experts of one layer: ours and transformers'.

    The implementations take turns in one process, with weights that no cache holds, beside the
    machine's own limits. An implementation whose output differs gets no speed-up, and the exit code
    is 1.

    Example: modes-fx bench layer --shape small --tokens 1 512 --skip 0 0.88
    """
    import torch

    from modes_fx.bench.layer import DEFAULT_BASELINES, LayerPlan, bench_layer
    from modes_fx.bench.layer.implementations import OURS_INT8
    from modes_fx.bench.layer.render import print_bench, to_markdown
    from modes_fx.bench.shapes import find_shape

    quiet_libraries()
    plan = LayerPlan(
        shape=find_shape(shape),
        tokens=tokens,
        skips=skip,
        dtype=getattr(torch, dtype.of_torch),
        threads=threads,
        baselines=[
            *([OURS_INT8] if int8 else []),
            *(DEFAULT_BASELINES if baselines is None else baselines),
        ],
        layouts=[one.value for one in layout],
        rounds=rounds,
        cache=cache_bytes(cache_mib),
    )
    with Console(stderr=True).status("") as status:
        measured = bench_layer(plan, status.update)
    if json is not None:
        json.write_text(measured.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(to_markdown(measured), encoding="utf-8")
    print_bench(measured, Console())
    if measured.failures:
        raise typer.Exit(FAILED_CHECK)
