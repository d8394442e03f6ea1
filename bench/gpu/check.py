"""Everything at once on a GPU machine: the tests of the kernels, then the benchmark.

``python -m modes_fx.bench.gpu.check --out out/gpu``; the report can be attached to an issue.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from modes_fx.bench.gpu.run import named_layers, run_benchmark, the_gpu, write

TESTS = ("tests/modes_fx/kernels/triton", "tests/modes_fx/test_fused_ops.py")


def run_tests() -> tuple[bool, str]:
    """Run all tests of the kernels, on the device; return whether they passed, and their sum."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "grid or not grid", *TESTS]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout.strip() or "nothing was run").splitlines()
    named = [*lines, *done.stderr.splitlines()]
    failed = [line for line in named if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, "; ".join([lines[-1], *failed])


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the report.")],
) -> None:
    """Test the kernels on the GPU at hand, time them, and write report.md and report.json."""
    try:
        device = the_gpu()
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    passed, tests = run_tests()
    typer.echo(tests, err=True)
    if not passed:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(f"# The kernels' tests failed\n\n{tests}\n", "utf-8")
        typer.echo(f"Nothing is timed. Attach {out / 'report.md'} to an issue", err=True)
        raise typer.Exit(1)
    report = run_benchmark(named_layers([]), device)
    write(report.model_copy(update={"tests": tests}), out)
    typer.echo(f"Attach {out / 'report.md'} to an issue", err=True)


if __name__ == "__main__":
    typer.run(main)
