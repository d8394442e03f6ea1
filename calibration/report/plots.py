"""The plots of a calibration's report."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from modes_fx.calibration.report.schema import CalibrationReport

LAYERS, EXPERTS, UPDATES = "layers.png", "experts.png", "updates.png"
SEARCH, METHODS = "search.png", "methods.png"
LEAST_KL = 1e-9
"""What a logarithmic scale shows of a KL of nothing."""


def save_plots(report: CalibrationReport, folder: Path) -> list[str]:
    """Save the plots as PNG files into a folder, and return their names."""
    names = [_save(_layers(report), folder / LAYERS), _save(_experts(report), folder / EXPERTS)]
    if report.updates:
        names.append(_save(_updates(report), folder / UPDATES))
    names.append(_save(_search(report), folder / SEARCH))
    if report.comparison is not None:
        names.append(_save(_methods(report), folder / METHODS))
    return names


def _save(figure: Figure, path: Path) -> str:
    figure.savefig(path, dpi=120)
    return path.name


def _layers(report: CalibrationReport) -> Figure:
    """Alpha of each layer, and what each target skips there, by modality."""
    panels = 1 + len(report.targets)
    figure = Figure(figsize=(4 * panels, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    names = list(next(iter(report.alpha.values())))
    for name in names:
        values = [of_layer[name] for of_layer in report.alpha.values()]
        axes[0].plot(values, marker="o", label=name)
    axes[0].set(title="alpha: the layer removed", xlabel="MoE layer", ylabel="change of answers")
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[0].legend()
    for axis, target in zip(axes[1:], report.targets, strict=True):
        for name in names:
            skipped = [of_layer.get(name, 0) for of_layer in target.skip_ratio_by_layer.values()]
            axis.plot(skipped, marker="o", label=name)
        axis.set(title=f"skipped at {target.target:.0%}", xlabel="MoE layer", ylim=(-0.02, 1.02))
    return figure


def _experts(report: CalibrationReport) -> Figure:
    """How many experts of each layer have a pair left, by modality."""
    names = list(dict.fromkeys(name for hit in report.experts_hit.values() for name in hit))
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    lines = {"nothing skipped": report.experts_hit}
    lines |= {f"at {target.target:.0%}": target.experts_hit for target in report.targets}
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, hit in lines.items():
            axis.plot([of_layer.get(name, 0) for of_layer in hit.values()], marker="o", label=label)
        axis.set(title=f"experts with work, {name}", xlabel="MoE layer", ylabel="experts")
        axis.set_ylim(0, 1.05 * max(report.experts))
        axis.legend(fontsize="small")
    return figure


def _updates(report: CalibrationReport) -> Figure:
    """How far each layer's experts move the tokens of each modality."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    magnitude, angle = figure.subplots(1, 2)
    for name in dict.fromkeys(name for of_layer in report.updates.values() for name in of_layer):
        of_layers = [u[name] for u in report.updates.values() if name in u]
        magnitude.plot([update.magnitude for update in of_layers], marker="o", label=name)
        angle.plot([update.angle for update in of_layers], marker="o", label=name)
    magnitude.set(
        title="length of the experts' update", xlabel="MoE layer", ylabel="of the token's"
    )
    angle.set(title="angle by which it turns the token", xlabel="MoE layer", ylabel="degrees")
    magnitude.legend()
    return figure


def _search(report: CalibrationReport) -> Figure:
    """The path of the search between two modalities, and KL against the skip ratio."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    path, quality = figure.subplots(1, 2)
    _path(report, figure, path)
    ratios = [point.skip_ratio for point in report.search]
    kl = [max(point.kl, LEAST_KL) for point in report.search]
    quality.scatter(ratios, kl, s=12, color="0.6", label="tried by the search")
    reached = [target.scores.skip_ratio for target in report.targets]
    before = [max(target.kl_before_extras, LEAST_KL) for target in report.targets]
    after = [max(target.scores.kl, LEAST_KL) for target in report.targets]
    quality.plot(reached, before, marker="o", label="thresholds chosen")
    quality.plot(reached, after, marker="*", markersize=11, label="the policy")
    quality.set(title="quality against skipping", xlabel="skipped pairs", yscale="log")
    quality.set_ylabel("KL from the full model (nats)")
    quality.legend(fontsize="small")
    return figure


def _path(report: CalibrationReport, figure: Figure, axis: Axes) -> None:
    """What was tried, by what it skips of two modalities, in the order in which it was tried."""
    seen = (name for point in report.search for name in point.skip_ratio_by_modality)
    names = list(dict.fromkeys(seen))
    first, second = names[0], names[min(1, len(names) - 1)]
    x = [point.skip_ratio_by_modality.get(first, 0.0) for point in report.search]
    y = [point.skip_ratio_by_modality.get(second, 0.0) for point in report.search]
    kl = [max(point.kl, LEAST_KL) for point in report.search]
    axis.plot(x, y, color="0.8", linewidth=0.8, zorder=1)
    dots = axis.scatter(x, y, c=kl, norm=LogNorm(), cmap="viridis", s=24, zorder=2)
    for target in report.targets:
        skipped = target.scores.skip_ratio_by_modality
        place = (skipped.get(first, 0.0), skipped.get(second, 0.0))
        axis.plot(*place, marker="*", markersize=13, linestyle="", label=f"{target.target:.0%}")
    figure.colorbar(dots, ax=axis, label="KL (nats)")
    axis.set(title="the search", xlabel=f"skipped {first} pairs", ylabel=f"skipped {second} pairs")
    axis.legend(fontsize="small", title="chosen")


def _methods(report: CalibrationReport) -> Figure:
    """KL against the skip ratio, for every method compared."""
    assert report.comparison is not None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for method in dict.fromkeys(row.method for row in report.comparison.rows):
        rows = [row for row in report.comparison.rows if row.method == method]
        ratios = [row.scores.skip_ratio for row in rows]
        axis.plot(ratios, [row.scores.kl for row in rows], marker="o", label=method)
    axis.set(xlabel="skipped pairs", ylabel="KL from the full model (nats)", yscale="log")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
