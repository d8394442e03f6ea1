"""The report as files."""

from collections.abc import Mapping
from pathlib import Path

from modes_fx.calibration.report import page
from modes_fx.calibration.report.plots import save_plots
from modes_fx.calibration.report.schema import ByModality, CalibrationReport
from modes_fx.vocabulary import ModalityName


def write_report(report: CalibrationReport, folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``report.html`` and the plots into a folder.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("report.json").write_text(
        report.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
    text = to_markdown(report, save_plots(report, folder))
    folder.joinpath("report.md").write_text(text, encoding="utf-8")
    html = page.to_html(text, folder, title="MoDES-FX calibration")
    folder.joinpath("report.html").write_text(html, encoding="utf-8")


def to_markdown(report: CalibrationReport, plots: list[str]) -> str:
    """Render the report as Markdown.

    Args:
        report: what to show.
        plots: the names of the plots beside it.
    """
    return page.to_markdown(
        "modes_fx.calibration.report",
        "report.md.jinja",
        {
            "percent": _percent,
            "number": _number,
            "by_modality": _by_modality,
            "bytes": _bytes,
            "counts": _counts,
        },
        report=report,
        plots=plots,
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _by_modality(ratios: ByModality) -> str:
    return ", ".join(f"{name} {_percent(ratio)}" for name, ratio in ratios.items())


def _counts(counts: Mapping[ModalityName, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
