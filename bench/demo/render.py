"""The report as files: JSON, Markdown, one HTML page with everything in it, and the plots."""

import base64
import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from modes_fx.bench.demo.findings import findings, percent
from modes_fx.bench.demo.plots import save_plots
from modes_fx.bench.demo.report import DemoReport, Interval, Result


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
    environment = _environment()
    environment.filters |= {
        "percent": percent,
        "interval": _interval,
        "difference": _difference,
    }
    tokens = report.calibration.tokens.items()
    return environment.from_string(_template("report.md.jinja")).render(
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
    content = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    content = re.sub(
        r'src="([^"]+\.png)"', lambda link: f'src="{_embedded(folder / link[1])}"', content
    )
    return _environment().from_string(_template("page.html.jinja")).render(content=content)


def _environment() -> Environment:
    return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _template(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _embedded(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


def _interval(interval: Interval) -> str:
    lower, upper = interval
    return f"{100 * lower:.1f} to {100 * upper:.1f}"


def _difference(result: Result) -> str:
    if result.ahead_of_modes is None or result.ahead_of_modes_interval is None:
        return ""
    lower, upper = result.ahead_of_modes_interval
    return f"{100 * result.ahead_of_modes:+.1f} ({100 * lower:+.1f} to {100 * upper:+.1f})"
