"""The plots of a calibration's report."""

from pathlib import Path

from matplotlib.figure import Figure

from modes_fx.calibration.report.schema import CalibrationReport

LAYERS, METHODS = "layers.png", "methods.png"


def save_plots(report: CalibrationReport, folder: Path) -> list[str]:
    """Save the plots as PNG files into a folder, and return their names."""
    names = [_save(_layers(report), folder / LAYERS)]
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
