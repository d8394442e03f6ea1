"""The demo's results on a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from modes_fx.bench.demo.findings import VERDICTS, verdict
from modes_fx.bench.demo.report import DemoReport

_SHORT: Mapping[str, str] = MappingProxyType(
    {"": "", **dict(zip(VERDICTS, ("better", "unclear", "worse"), strict=True))}
)


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
    table = _table(
        f"{report.full.questions} held-out questions at about equal skip ratio, in per cent",
        "method",
        ["skipped", "text", "vision", "right", "KL"],
    )
    table.add_column("vs default")
    table.add_row("full model", "0.0", "", "", _points(report.full.accuracy), "0", "")
    for target in report.targets:
        table.add_section()
        for result in report.results:
            if result.target == target:
                skipped = result.skip_ratio_by_modality
                table.add_row(
                    result.method,
                    _points(result.skip_ratio),
                    _points(skipped.get("text", 0.0)),
                    _points(skipped.get("vision", 0.0)),
                    _points(result.accuracy),
                    f"{result.kl:.4f}",
                    _SHORT[verdict(result)],
                )
    table.caption = "vs default: by the 95 % interval of the difference on the same questions"
    return table


def _timing_table(report: DemoReport) -> Table:
    timing = report.timing
    table = _table(
        f"generate, {timing.batch} image questions, one thread",
        "case",
        ["prefill ms", "speed-up", "decode tok/s", "speed-up"],
    )
    for case in timing.cases:
        table.add_row(
            case.name,
            f"{1e3 * case.prefill.wall.median:.1f}",
            f"{case.prefill.speedup.median:.2f}x",
            f"{case.decode_tokens_per_second:.0f}",
            f"{case.decode.speedup.median:.2f}x",
        )
    table.caption = (
        f"speed-up over the fastest of HF: prefill {timing.prefill_baseline}; "
        f"decode {timing.decode_baseline}"
    )
    return table


def _table(title: str, heading: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(heading, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _points(ratio: float) -> str:
    return f"{100 * ratio:.1f}"
