"""Key figures over time: ``make bench-history`` measures a layer and appends a line to a file.

A line says when, of which commit, on which machine, and what was measured. Lines of different
machines are not comparable, nor is a time with one measured beside other work; the ratios to
transformers of the same run are. Nothing is appended unless it is asked for.
"""

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modes_fx.bench.environment import Environment, Section
from modes_fx.bench.layer import LayerBench, LayerPlan, bench_layer
from modes_fx.bench.layer.implementations import OURS
from modes_fx.bench.layer.report import TRANSFORMERS
from modes_fx.bench.layer.weights import Layout
from modes_fx.bench.shapes import find_shape

SCHEMA_VERSION = 1
SHAPE, TOKENS, SKIPS = "small", (1, 512), (0.0, 0.88)


class Figure(Section):
    """One measurement of ours.

    Attributes:
        tokens: T.
        skip: the skip ratio asked for.
        layout: of the weights.
        cpu_ms: processor time of a call, the median.
        spread: its interquartile range, as a share of it.
        speedup: over the faster of transformers' two ways with nothing skipped, in the same rounds.
    """

    tokens: int
    skip: float
    layout: Layout
    cpu_ms: float
    spread: float
    speedup: float


class Line(Section):
    """One line of the file.

    Attributes:
        version: of this schema.
        date: of the measurement, in ISO 8601.
        commit: of the code, 40 hexadecimal digits.
        environment: where and with what.
        shape: the layer.
        rounds: how often everything was timed.
        figures: what was measured.
    """

    version: int = SCHEMA_VERSION
    date: str
    commit: str
    environment: Environment
    shape: str
    rounds: int
    figures: list[Figure]


def line_of(bench: LayerBench, commit: str, date: datetime) -> Line:
    """Take the key figures from a layer bench.

    Raises:
        ValueError: an output is wrong or the run is too noisy to be kept; says what to do.
    """
    if problems := bench.failures + bench.noise:
        raise ValueError(f"nothing is appended: {problems[0]}")
    figures = [
        Figure(
            tokens=row.tokens,
            skip=row.skip,
            layout=row.layout,
            cpu_ms=round(row.cpu_ms, 4),
            spread=round(row.spread, 3),
            speedup=round(row.speedup.median, 3),
        )
        for row in bench.rows
        if row.impl == OURS and row.speedup is not None
    ]
    return Line(
        date=date.isoformat(timespec="seconds"),
        commit=commit,
        environment=bench.environment,
        shape=bench.rows[0].shape,
        rounds=bench.rounds,
        figures=figures,
    )


def append(path: Path, line: Line) -> None:
    """Append a line to a file, which is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json() + "\n")


def clean_commit(folder: Path, history: Path) -> str:
    """Return the commit that a working tree is of.

    Args:
        folder: in the tree.
        history: a file whose changes do not matter.

    Raises:
        ValueError: it is no git tree, or files that git knows differ from the commit.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"the commit cannot be found: {done.stderr.strip()}")
        return done.stdout

    commit = git("rev-parse", "HEAD").strip()
    top = Path(git("rev-parse", "--show-toplevel").strip())
    changed = [top / entry[3:] for entry in git("status", "--porcelain", "-uno").splitlines()]
    if changed := [path for path in changed if path.resolve() != history.resolve()]:
        raise ValueError(
            f"{len(changed)} files are not as in {commit:.12}, the first is {changed[0].name}, so "
            "the commit would not say what was measured: commit, then measure"
        )
    return commit


def main(
    out: Annotated[Path, typer.Option(help="The file of all lines.")],
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is timed.")] = 15,
) -> None:
    """Measure, and append a line."""
    console = Console(stderr=True)
    try:
        commit = clean_commit(Path(), out)
        plan = LayerPlan(
            find_shape(SHAPE), tokens=TOKENS, skips=SKIPS, baselines=TRANSFORMERS, rounds=rounds
        )
        with console.status("") as status:
            doing: Callable[[str], None] = status.update
            line = line_of(bench_layer(plan, doing), commit, datetime.now(UTC))
    except ValueError as error:
        console.print(str(error), style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    append(out, line)
    typer.echo(line.model_dump_json(indent=2))


if __name__ == "__main__":
    typer.run(main)
