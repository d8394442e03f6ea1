"""The demo's results on a terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from modes_fx.bench.demo.findings import percent, verdict
from modes_fx.bench.demo.report import DemoReport


def print_summary(report: DemoReport, out: Path, console: Console) -> None:
    """Print the main tables, and where to look next."""
    console.print(_accuracy_table(report), _timing_table(report))
    for failure in report.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)
    console.print(
        f"Look next at {out / 'report.html'} (plots and all tables) and {out / 'report.json'}; "
        f"the policy is in {report.calibration.policy}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _accuracy_table(report: DemoReport) -> Table:
    table = Table(
        title=f"{report.full.questions} held-out questions: accuracy at equal skip ratio",
        caption="interval at 95 %; the last column compares accuracies on the same questions",
    )
    for heading in ("skipped", "method", "text", "vision", "accuracy", "interval", "KL", ""):
        table.add_column(heading, justify="left" if heading in ("method", "") else "right")
    full = report.full
    table.add_row(
        "0.0 %", "full model", "", "", percent(full.accuracy), _points(full.accuracy_interval), "0"
    )
    previous = None
    for result in report.results:
        if result.target != previous:
            table.add_section()
            previous = result.target
        skipped = result.skip_ratio_by_modality
        table.add_row(
            percent(result.skip_ratio),
            result.method,
            percent(skipped.get("text", 0.0)),
            percent(skipped.get("vision", 0.0)),
            percent(result.accuracy),
            _points(result.accuracy_interval),
            f"{result.kl:.4f}",
            verdict(result),
        )
    return table


def _timing_table(report: DemoReport) -> Table:
    timing = report.timing
    table = Table(
        title=f"generate, {timing.batch} image questions, one thread",
        caption=f"speed-up over {timing.prefill_baseline} (prefill), "
        f"{timing.decode_baseline} (decode)",
    )
    table.add_column("case")
    for heading in ("prefill ms", "speed-up", "decode tokens/s", "speed-up"):
        table.add_column(heading, justify="right")
    for case in timing.cases:
        table.add_row(
            case.name,
            f"{1e3 * case.prefill.wall.median:.1f}",
            f"{case.prefill.speedup.median:.2f}x",
            f"{case.decode_tokens_per_second:.0f}",
            f"{case.decode.speedup.median:.2f}x",
        )
    return table


def _points(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
