"""The summary shows the main numbers and where to look next."""

import io
from pathlib import Path

from rich.console import Console

from modes_fx.bench.demo.comparison import METHODS
from modes_fx.bench.demo.report import DemoReport
from modes_fx.bench.demo.summary import print_summary


def summary(report: DemoReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(report, Path("out/demo"), console)
    return console.file.getvalue()


def test_methods_cases_and_files_are_named(report):
    text = summary(report)
    for name in (*METHODS, *(case.name for case in report.timing.cases)):
        assert name in text
    assert "out/demo/report.html" in text
    assert "FAILED" not in text


def test_failures_are_named(report):
    failed = report.model_copy(update={"failures": ["tau 0, one image: too far"]})
    assert "FAILED: tau 0, one image: too far" in summary(failed)
