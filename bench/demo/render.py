"""The report as files: JSON, Markdown, one HTML page with everything in it, and the plots."""

from pathlib import Path

from modes_fx.bench.demo.findings import findings, percent
from modes_fx.bench.demo.plots import save_plots
from modes_fx.bench.demo.report import DemoReport, Interval, Result
from modes_fx.calibration.report import page
from modes_fx.policy_means import strength_in_words


def write_report(report: DemoReport, folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``report.html`` and the plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("report.json").write_text(
        report.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
    save_plots(report, folder)
    text = to_markdown(report)
    folder.joinpath("report.md").write_text(text, encoding="utf-8")
    folder.joinpath("report.html").write_text(to_html(text, folder), encoding="utf-8")


def to_markdown(report: DemoReport) -> str:
    """Render the report as Markdown; the plots are linked as ``<name>.png``."""
    tokens = report.calibration.tokens.items()
    return page.to_markdown(
        __package__,
        "report.md.jinja",
        {
            "percent": percent,
            "interval": _interval,
            "difference": _difference,
            "strength": strength_in_words,
        },
        report=report,
        env=report.environment,
        versions=", ".join(f"{k} {v}" for k, v in report.environment.versions.items()),
        tokens=", ".join(f"{count} {name}" for name, count in tokens if count),
        findings=findings(report),
    )


def to_html(markdown: str, folder: Path) -> str:
    """Render Markdown as one HTML page that holds the images it links to.

    Args:
        markdown: from :func:`to_markdown`.
        folder: where the images are.
    """
    return page.to_html(markdown, folder, title="MoDES-FX demo")


def _interval(interval: Interval) -> str:
    lower, upper = interval
    return f"{100 * lower:.1f} to {100 * upper:.1f}"


def _difference(result: Result) -> str:
    if result.ahead_of_default is None or result.ahead_of_default_interval is None:
        return ""
    lower, upper = result.ahead_of_default_interval
    return f"{100 * result.ahead_of_default:+.1f} ({100 * lower:+.1f} to {100 * upper:+.1f})"
