"""The report's plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from modes_fx.bench.demo import comparison
from modes_fx.bench.demo.report import DemoReport, Measured

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_STYLE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        comparison.OURS: ("#0072B2", "o"),
        comparison.MODES: ("#E69F00", "P"),
        comparison.WITHOUT_ALPHA: ("#CC79A7", "D"),
        comparison.SINGLE_THRESHOLD: ("#D55E00", "s"),
        comparison.TOP_K: ("#009E73", "^"),
        comparison.TOP_K_RENORMALISED: ("#56B4E9", "v"),
        comparison.RANDOM: ("#999999", "x"),
    }
)
LEAST_KL = 1e-6
LEAST_ALPHA = 1e-5
"""Smaller ones are drawn alike: they are rounding."""

_MODALITY_COLOUR: Mapping[str, str] = MappingProxyType(
    {"text": "#D55E00", "vision": "#0072B2", "audio": "#009E73"}
)


def draw_plots(report: DemoReport) -> dict[str, Figure]:
    """Draw every plot.

    Returns:
        Figures by name, in the order in which the report shows them.
    """
    plots: dict[str, Callable[[DemoReport], Figure]] = {
        "accuracy": accuracy_against_skip,
        "kl": kl_against_skip,
        "alpha": alpha_by_layer,
        "skip_by_layer": skip_by_layer,
        "frontier": frontier,
        "timing": timing,
    }
    return {name: draw(report) for name, draw in plots.items()}


def save_plots(report: DemoReport, folder: Path) -> dict[str, Path]:
    """Draw every plot into ``<name>.png`` and return the files by name."""
    paths = {}
    for name, figure in draw_plots(report).items():
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=120)
    return paths


def accuracy_against_skip(report: DemoReport) -> Figure:
    """Accuracy of every method: all questions, those about images, those about text."""
    figure = _figure(10.5, 4.0)
    panels = {
        "all questions": lambda scores: scores.accuracy,
        "image questions": lambda scores: scores.accuracy_image,
        "text questions": lambda scores: scores.accuracy_text,
    }
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, accuracy) in zip(all_axes, panels.items(), strict=True):
        _full_model(axes, accuracy(report.full))
        _lines(axes, report, accuracy)
        axes.set_title(title)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for result in report.results:
        colour, _ = _STYLE[result.method]
        lower, upper = result.accuracy_interval
        all_axes[0].plot([result.skip_ratio] * 2, [lower, upper], color=colour, alpha=0.5)
    all_axes[0].set_ylabel("exact match, held-out")
    _legend_below(figure, all_axes[0])
    return figure


def kl_against_skip(report: DemoReport) -> Figure:
    """KL from the full model for every method."""
    figure = _figure(6.5, 4.2)
    axes = figure.subplots()
    _lines(axes, report, lambda result: result.kl)
    axes.set_yscale("log")
    axes.set_ylabel("KL(full || skipped), nats per answer token")
    axes.set_title("How far the answers' probabilities move")
    _legend_below(figure, axes)
    return figure


def alpha_by_layer(report: DemoReport) -> Figure:
    """The importance of every layer's experts, for each modality."""
    figure = _figure(6.5, 3.8)
    axes = figure.subplots()
    alphas = list(report.calibration.alpha.values())
    names = sorted({name for alpha in alphas for name in alpha})
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [alpha.get(name, 0.0) for alpha in alphas]
        offset = (place - (len(names) - 1) / 2) * width
        axes.bar(
            np.arange(len(alphas)) + offset, values, width, color=_MODALITY_COLOUR[name], label=name
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST_ALPHA)
    axes.set_xticks(range(len(alphas)))
    axes.set_xlabel("MoE layer")
    axes.set_ylabel("alpha (share of the sum over layers)")
    axes.set_title("KL when a layer's experts are removed for one modality")
    _legend_below(figure, axes)
    return figure


def skip_by_layer(report: DemoReport) -> Figure:
    """The skip ratio of every layer under the default policy, a line for each target."""
    figure = _figure(6.5, 3.8)
    axes = figure.subplots()
    for shade, target in zip(np.linspace(0.4, 1, len(report.targets)), report.targets, strict=True):
        ratios = report.result(comparison.OURS, target).skip_ratio_by_layer.values()
        axes.plot(list(ratios), "o-", color="#0072B2", alpha=shade, label=f"target {target:.0%}")
    axes.set_xlabel("MoE layer")
    axes.set_ylabel("skip ratio, held-out")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(-0.03, 1.03)
    axes.set_title("Where the default policy skips")
    _legend_below(figure, axes)
    return figure


def frontier(report: DemoReport) -> Figure:
    """All thresholds that the search measured, by what they skip of each modality."""
    figure = _figure(6.5, 4.8)
    axes = figure.subplots()
    measured = report.calibration.searched
    colours = np.log10([max(choice.kl, LEAST_KL) for choice in measured])
    points = axes.scatter(*_places(measured), c=colours, cmap="viridis_r", s=24)
    figure.colorbar(points, ax=axes, label="log10 of KL in nats")
    chosen = [report.calibration.targets[target] for target in report.targets]
    axes.plot(*_places(chosen), "o", markersize=12, markerfacecolor="none", color="#D55E00")
    for target, text, vision in zip(report.targets, *_places(chosen), strict=True):
        axes.annotate(f"{target:.0%}", (text, vision), textcoords="offset points", xytext=(9, 6))
    axes.set_xlabel("skip ratio of text")
    axes.set_ylabel("skip ratio of vision")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("The search for tau; circles: chosen for each target")
    return figure


def timing(report: DemoReport) -> Figure:
    """Median times of prefill and decode, with quartiles."""
    figure = _figure(10.5, 4.0)
    cases = report.timing.cases
    steps = report.timing.new_tokens - 1
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("prefill of the batch", "decode step of the batch")
    for axes, title, phase, scale in zip(
        panels, titles, ("prefill", "decode"), (1e3, 1e3 / steps), strict=True
    ):
        walls = [getattr(case, phase).wall for case in cases]
        medians = np.array([wall.median for wall in walls]) * scale
        errors = [
            medians - np.array([wall.lower for wall in walls]) * scale,
            np.array([wall.upper for wall in walls]) * scale - medians,
        ]
        colours = ["#0072B2" if case.ours else "#999999" for case in cases]
        axes.barh(range(len(cases)), medians, xerr=errors, color=colours, capsize=3)
        axes.set_xlabel("milliseconds, median and quartiles")
        axes.set_title(title)
    panels[0].set_yticks(range(len(cases)), [case.name for case in cases])
    panels[0].invert_yaxis()
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure that needs no display and leaves pyplot's state alone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _places(choices: Sequence[Measured]) -> tuple[list[float], list[float]]:
    """The skip ratios of text and of vision."""
    ratios = [choice.skip_ratio_by_modality for choice in choices]
    return [r.get("text", 0.0) for r in ratios], [r.get("vision", 0.0) for r in ratios]


def _lines(axes: Axes, report: DemoReport, value: Callable[..., float]) -> None:
    for method, (colour, marker) in _STYLE.items():
        results = [report.result(method, target) for target in report.targets]
        skips = [result.skip_ratio for result in results]
        axes.plot(skips, [value(r) for r in results], color=colour, marker=marker, label=method)
    axes.set_xlabel("skip ratio, held-out")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)


def _full_model(axes: Axes, accuracy: float) -> None:
    axes.axhline(accuracy, color="black", linestyle=":", label="full model")


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
