"""The tables and the plot of scaling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from modes_fx.bench.environment import describe
from modes_fx.bench.layer.implementations import OURS
from modes_fx.bench.scaling.report import Axis, Point, Scaling
from modes_fx.bench.tables import Page, print_tables, tables_markdown

TITLES: dict[Axis, str] = {
    "tokens": "tokens of a prompt",
    "batch": "sequences that decode a token each",
    "experts": "experts of a layer",
    "layers": "layers",
}


def print_scaling(found: Scaling, console: Console) -> None:
    """Print a table for each axis."""
    print_tables(_pages(found), found.failures, console)


def scaling_markdown(found: Scaling) -> str:
    """Return the tables as Markdown, with where and how they were measured."""
    threads = found.environment.threads
    lines = [
        "# How the cost of experts grows",
        "",
        f"`modes-fx bench scaling`: experts of the layer `{found.shape}`, top-{found.top_k}, in "
        f"{found.dtype}. {describe(found.environment)}, {threads} thread{'s' * (threads > 1)}. "
        f"Medians of {found.rounds} rounds by {found.clock} time, in each of which all ways take "
        "turns, in milliseconds; in brackets the speed-up over the faster of transformers' two "
        "ways at that place, not compiled: for few tokens compiled batched_mm is stronger, see "
        "`modes-fx bench layer`. The last column is p of time ~ value^p. The range of the middle "
        "half of a time's samples, as a share of its median, has a median of "
        f"{_spread(found, 0.5):.0%} over all times, and is at most {_spread(found, 1.0):.0%}.",
        "",
        "![](scaling.png)",
        "",
    ]
    lines += tables_markdown(_pages(found), found.failures)
    return "\n".join(lines).rstrip() + "\n"


def _pages(found: Scaling) -> list[Page]:
    return [Page(_title(found, axis), *_table(found, axis)) for axis in found.axes]


def draw(found: Scaling) -> Figure:
    """Draw time over each axis, a line for each way."""
    axes = found.axes
    figure = Figure(figsize=(4 * len(axes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, plot in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        for name in found.names(axis):
            line = found.line(axis, name)
            values = [point.value for point in line]
            times = [found.milliseconds(point) for point in line]
            style = "-" if line[0].impl == OURS else "--"
            label = name if axis == axes[0] else None
            plot.plot(values, times, style, marker="o", label=label)
        plot.set(xlabel=TITLES[axis], ylabel="ms", xscale="log", yscale="log")
        plot.set_xticks(values, [str(value) for value in values])
        plot.minorticks_off()
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    return figure


def save_scaling(found: Scaling, folder: Path) -> None:
    """Write ``scaling.json``, ``scaling.md`` and ``scaling.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.json").write_text(found.model_dump_json(indent=1) + "\n", "utf-8")
    (folder / "scaling.md").write_text(scaling_markdown(found), "utf-8")
    draw(found).savefig(folder / "scaling.png", dpi=100)


def _spread(found: Scaling, share: float) -> float:
    return float(np.quantile([point.spread for point in found.points], share))


def _title(found: Scaling, axis: Axis) -> str:
    point = next(point for point in found.points if point.axis == axis)
    fixed = {
        "tokens": f"{point.experts} experts, 1 layer",
        "batch": f"{point.experts} experts, 1 layer",
        "experts": f"{point.tokens} tokens, 1 layer",
        "layers": f"{point.experts} experts, {point.tokens} tokens",
    }
    return f"{TITLES[axis]} ({fixed[axis]})"


def _table(found: Scaling, axis: Axis) -> tuple[list[str], list[list[str]]]:
    lines: Sequence[list[Point]] = [found.line(axis, name) for name in found.names(axis)]
    columns = ["way", *(str(point.value) for point in lines[0]), "p"]
    rows = []
    for line in lines:
        exponent = found.exponent(line)
        shown = "" if exponent is None else f"{exponent:.2f}"
        rows.append([line[0].name, *(_cell(found, point) for point in line), shown])
    return columns, rows


def _cell(found: Scaling, point: Point) -> str:
    time = f"{found.milliseconds(point):.3g}"
    if not point.agrees:
        return f"{time} (differs)"
    gain = point.speedup is not None and point.impl == OURS
    return f"{time} ({point.speedup.median:.2f}x)" if gain and point.speedup else time
