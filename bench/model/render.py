"""The tables of a model bench: on a terminal, and as Markdown for docs/performance.md."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from modes_fx.bench.environment import describe
from modes_fx.bench.model.report import ModelBench, PhaseSection, WayRow

COLUMNS = {
    "way": 0,
    "skip": 0,
    "CPU ms": 0,
    "wall ms": 1,
    "+-": 1,
    "vs HF": 0,
    "vs any": 0,
    "kernel": 0,
    "skipping": 0,
    "bound": 0,
    "reached": 0,
    "experts": 1,
    "error": 1,
}
"""What a table shows; 1 is left out on a terminal."""


def print_bench(bench: ModelBench, console: Console) -> None:
    """Print a table for each phase."""
    for section in bench.phases:
        table = Table(title=_title(bench, section), caption=_parts(section), box=SIMPLE)
        shown = [place for place, hidden in enumerate(COLUMNS.values()) if not hidden]
        for place, name in enumerate(COLUMNS):
            if place in shown:
                table.add_column(name, justify="right" if place else "left", no_wrap=place == 0)
        for row in _rows_of(bench, section):
            cells = _cells(row)
            table.add_row(*(cells[place] for place in shown))
        console.print(table)
    for failure in bench.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False, highlight=False)


def to_markdown(bench: ModelBench) -> str:
    """Return the tables as Markdown, with where and how they were measured."""
    lines = [
        f"{describe(bench.environment)}, {bench.capability}. Medians of {bench.rounds} rounds; "
        f"ratios by {bench.clock} time. Ceilings: {bench.gemm_gflops:.0f} GFLOP/s, "
        f"{bench.read_gbps:.1f} GB/s. Peak memory {bench.peak_gb:.1f} GB.",
        "",
    ]
    for section in bench.phases:
        lines += [f"**{_title(bench, section)}.** {_parts(section)}.", ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("|---|" + "--:|" * (len(COLUMNS) - 1))
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in _rows_of(bench, section)]
        lines.append("")
    lines += [f"- **Failed**: {failure}." for failure in bench.failures]
    return "\n".join(lines).rstrip() + "\n"


def _rows_of(bench: ModelBench, section: PhaseSection) -> Sequence[WayRow]:
    return [row for row in bench.rows if row.phase == section.phase]


def _title(bench: ModelBench, section: PhaseSection) -> str:
    threads = "1 thread" if bench.threads == 1 else f"{bench.threads} threads"
    what = {
        "prefill": f"prefill of {bench.prompt} tokens, {bench.image_tokens} of an image",
        "decode": f"decode of one token after {bench.prompt}",
    }[section.phase]
    return f"{bench.model}, {bench.layers} layers, {what}, {bench.dtype}, {threads}"


def _parts(section: PhaseSection) -> str:
    total = section.total_ms
    return (
        f"{section.baseline}: {total:.1f} ms, of them experts {section.experts_ms / total:.0%}, "
        f"attention {section.attention_ms / total:.0%}, rest {section.rest_ms / total:.0%}; "
        f"{section.fastest}: {section.fastest_ms:.1f} ms"
    )


def _cells(row: WayRow) -> list[str]:
    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}x"

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    return [
        row.way if row.layout == "default" else f"{row.way}, {row.layout}",
        f"{row.achieved_skip:.3f}" if row.skip else "0",
        f"{row.cpu_ms:.1f}",
        f"{row.wall_ms:.1f}",
        f"{row.spread:.0%}",
        times(row.speedup.median if row.speedup else None) if row.agrees else "differs",
        times(row.over_fastest),
        times(row.kernel_gain),
        times(row.skipping_gain),
        times(row.bound),
        share(row.of_bound),
        share(row.experts_share),
        f"{row.error:.1e}",
    ]
