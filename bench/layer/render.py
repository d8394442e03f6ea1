"""The tables of a layer bench: on a terminal, and as Markdown for docs/performance.md."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from modes_fx.bench.environment import describe
from modes_fx.bench.layer.report import LayerBench, LayerRow, SizeSection
from modes_fx.bench.timing import Spread

COLUMNS = {
    "implementation": 0,
    "skip": 0,
    "CPU ms": 0,
    "wall ms": 1,
    "+-": 0,
    "GFLOP/s": 0,
    "GB/s": 0,
    "floor": 0,
    "vs HF": 0,
    "vs batched": 1,
    "route us": 0,
    "route": 1,
    "error": 1,
}
"""What a table shows; 1 is left out on a terminal."""


def print_bench(bench: LayerBench, console: Console) -> None:
    """Print a table for each number of tokens."""
    for size in bench.sizes:
        table = Table(
            title=_title(bench, size),
            caption=_caption(bench, size),
            box=SIMPLE,
            padding=(0, 1, 0, 0),
        )
        shown = [place for place, hidden in enumerate(COLUMNS.values()) if not hidden]
        for place, name in enumerate(COLUMNS):
            if place in shown:
                table.add_column(name, justify="right" if place else "left", no_wrap=place == 0)
        for row in _rows_of(bench, size):
            cells = _cells(row)
            table.add_row(*(cells[place] for place in shown))
        console.print(table)
    for note in bench.left_out:
        console.print(f"left out: {note}", markup=False, highlight=False)
    for noise in bench.noise:
        console.print(f"NOISE: {noise}", style="bold yellow", markup=False, highlight=False)
    for failure in bench.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False, highlight=False)


def to_markdown(bench: LayerBench) -> str:
    """Return the tables as Markdown, with where and how they were measured."""
    lines = [_where(bench), ""]
    for size in bench.sizes:
        lines += [f"**{_title(bench, size)}.** {_caption(bench, size)}", ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("|---|" + "--:|" * (len(COLUMNS) - 1))
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in _rows_of(bench, size)]
        lines.append("")
    lines += [f"- Left out: {note}." for note in bench.left_out]
    lines += [f"- **Noise**: {noise}." for noise in bench.noise]
    lines += [f"- **Failed**: {failure}." for failure in bench.failures]
    return "\n".join(lines).rstrip() + "\n"


def _rows_of(bench: LayerBench, size: SizeSection) -> Sequence[LayerRow]:
    return [row for row in bench.rows if row.tokens == size.tokens]


def _title(bench: LayerBench, size: SizeSection) -> str:
    row = bench.rows[0]
    noun = "token" if size.tokens == 1 else "tokens"
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return f"{row.shape}, {size.tokens} {noun}, {row.dtype}, {threads}"


def _caption(bench: LayerBench, size: SizeSection) -> str:
    baseline = f"speed-up is over {size.baseline}" if size.baseline else "no baseline was timed"
    return (
        f"Ceilings: {size.gemm_gflops:.0f} GFLOP/s, {size.read_gbps:.1f} GB/s; {baseline}; "
        f"weights repeat after {size.rotated_mb:.0f} MB"
    )


def _where(bench: LayerBench) -> str:
    return (
        f"{describe(bench.environment)}, {bench.capability}, {bench.cache_mib:.0f} MiB last-level "
        f"cache. Medians of {bench.rounds} rounds; rates and ratios by "
        f"{bench.clock} time. GEMM ceiling: {bench.gemm}. Bandwidth ceiling: {bench.reader}. "
        "Routing: the gate, and sorting the kept pairs by expert."
    )


def _cells(row: LayerRow) -> list[str]:
    name = row.impl if row.layout == "default" else f"{row.impl}, {row.layout}"
    return [
        name,
        f"{row.achieved_skip:.3f}" if row.skip else "0",
        f"{row.cpu_ms:.3f}",
        f"{row.wall_ms:.3f}",
        f"{row.spread:.0%}",
        f"{row.gflops:.0f}",
        f"{row.gbps:.1f}",
        f"{row.of_floor:.0%}",
        _ratio(row.speedup, row),
        _ratio(row.speedups.get("hf_batched_compiled"), row),
        "" if row.routing_ms is None else f"{1e3 * row.routing_ms:.1f}",
        "" if row.routing_share is None else f"{row.routing_share:.1%}",
        f"{row.max_error:.1e}",
    ]


def _ratio(ratio: Spread | None, row: LayerRow) -> str:
    if not row.agrees:
        return "differs"
    return "" if ratio is None else f"{ratio.median:.2f}x"
