"""``modes-fx bench``: time one layer's experts, or a whole model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from modes_fx.bench.shapes import DEFAULT_SHAPE
from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.quiet import quiet_libraries


class Dtype(StrEnum):
    """Of weights and tokens, as the command line spells it."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def of_torch(self) -> str:
        """As torch spells it."""
        return {"bf16": "bfloat16", "fp32": "float32"}[self]


class CompilerName(StrEnum):
    """What compiles a captured graph."""

    INDUCTOR = "inductor"
    EAGER = "eager"


class LayoutName(StrEnum):
    """Of our weights."""

    DEFAULT = "default"
    PREPACKED = "prepacked"


TOKENS = [1, 16, 512, 2048]
SKIPS = [0.0, 0.5, 0.88]
LAYOUTS = list(LayoutName)

bench = typer.Typer(
    help="Time one layer's experts, or a whole model, against other ways to run them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class ListingCommand(TyperCommand):
    """Takes several values after one option: ``--tokens 1 16`` for ``--tokens 1 --tokens 16``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat an option that takes many values in front of each of them."""
        many = {
            name
            for param in self.params
            if getattr(param, "multiple", False)
            for name in param.opts
        }
        spelled: list[str] = []
        option = ""
        for arg in args:
            is_value = not arg.startswith("--")
            if is_value and option in many and spelled[-1] != option:
                spelled.append(option)
            option = option if is_value else arg
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


@bench.command(cls=ListingCommand)
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
    from modes_fx.bench.layer.render import print_bench, to_markdown
    from modes_fx.bench.shapes import find_shape

    quiet_libraries()
    plan = LayerPlan(
        shape=find_shape(shape),
        tokens=tokens,
        skips=skip,
        dtype=getattr(torch, dtype.of_torch),
        threads=threads,
        baselines=DEFAULT_BASELINES if baselines is None else baselines,
        layouts=[one.value for one in layout],
        rounds=rounds,
        cache=_bytes(cache_mib),
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


@bench.command(cls=ListingCommand)
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
        cache=_bytes(cache_mib),
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


def _bytes(mib: float | None) -> int | None:
    return None if mib is None else round(mib * 2**20)
