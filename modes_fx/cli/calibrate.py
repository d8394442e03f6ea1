"""``modes-fx calibrate``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from modes_fx.calibration import CalibrationOptions
from modes_fx.calibration.processes import Processes
from modes_fx.calibration.report import CalibrationReport
from modes_fx.calibration.run import calibrate_into
from modes_fx.cli.models import load_named_model
from modes_fx.cli.quiet import quiet_libraries
from modes_fx.cli.samples import NamedData, parse_columns

METHODS = ("default", "modes")


def calibrate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help='A local folder, the id of a hub repository, or "demo" for the shipped model.',
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help='"demo"; a JSONL file of messages; "gqa", "coco" or "videommmu", also with a '
            "local folder (gqa:FOLDER); or a folder of parquet files or a hub data set.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False,
            help="Folder for the policy, the report and the journal. A run that was stopped goes "
            "on from its journal.",
        ),
    ],
    targets: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATIO...", help="Skip ratios to calibrate for; by default 0.5 0.75 0.88."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to draw.")] = 256,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples that go through the model together.")
    ] = 16,
    method: Annotated[
        str,
        typer.Option(
            help='"default" chooses what to add to the published method by what it does to the '
            'answers; "modes" is the published method.'
        ),
    ] = "default",
    refine: Annotated[
        int,
        typer.Option(min=0, help="Rounds of moving the thresholds of single layers; many passes."),
    ] = 0,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare with other methods, on as many other samples."),
    ] = False,
    special_tokens: Annotated[
        str,
        typer.Option(help='"keep": the tokenizer\'s special tokens never skip; "text": as text.'),
    ] = "keep",
    seed: Annotated[int, typer.Option(help="Of the draw of the samples.")] = 0,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=COLUMN",
            help="What is in which column of a table: question, answer, image, video or messages.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="The part of a data set.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code of the repository.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json on standard output, and no table.")
    ] = False,
) -> None:
    """Find a policy for a model: which experts each token may skip, at several skip ratios.

    Runs samples of DATA through the model and chooses the thresholds that change its answers least.
    Writes modes_policy.json, report.html, report.md and report.json. What is measured goes into a
    journal at once: run the same command again after it was stopped, and it goes on from there.

    On several processes or nodes: accelerate launch -m modes_fx.calibration MODEL --data ...

    Example: modes-fx calibrate demo --data demo --special-tokens text --out my-policy
    """
    quiet_libraries()
    name, ratios = _sort_words(words, targets)
    _require(method, METHODS, "--method")
    _require(special_tokens, ("keep", "text"), "--special-tokens")
    named = NamedData(data, parse_columns(column or []), config, split, samples, seed)
    options = CalibrationOptions(
        method="modes" if method == "modes" else "default",
        refine_rounds=refine,
        special_tokens="text" if special_tokens == "text" else "keep",
        batch_size=batch_size,
        data_name=data,
        seed=seed,
    )
    processes = Processes()
    chats = named.load()
    others = named.load(others=True) if compare else None
    with Console(stderr=True, quiet=not processes.is_main).status(f"Loading {name}"):
        model, processor = load_named_model(name, trust_remote_code=trust_remote_code, place=True)
    if processor is None:
        raise ValueError(f"{name!r} has neither a processor nor a tokenizer to encode samples with")
    report = calibrate_into(
        out, model, processor, chats, ratios, options=options, compare_on=others
    )
    processes.close()
    if processes.is_main:
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        _print(report, out, Console(stderr=as_json))


def _sort_words(words: list[str], targets: list[float] | None) -> tuple[str, list[float]]:
    """Tell the model from the ratios that follow the first one after ``--targets``."""
    names, ratios = [], list(targets or [])
    for word in words:
        try:
            ratios.append(float(word))
        except ValueError:
            names.append(word)
    if len(names) != 1:
        raise ValueError(
            f"name one model to calibrate; these are {len(names)}: {', '.join(names) or 'none'}"
        )
    return names[0], ratios or [0.5, 0.75, 0.88]


def _require(value: str, allowed: tuple[str, ...], option: str) -> None:
    if value not in allowed:
        raise ValueError(f"{option} is one of {', '.join(allowed)}, not {value!r}")


def _print(report: CalibrationReport, out: Path, console: Console) -> None:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("target", "skipped", "by modality", "KL", "same likeliest token"):
        table.add_column(heading)
    for target in report.targets:
        scores = target.scores
        by_modality = ", ".join(f"{n} {r:.1%}" for n, r in scores.skip_ratio_by_modality.items())
        table.add_row(
            f"{target.target:g}",
            f"{scores.skip_ratio:.1%}",
            by_modality,
            f"{scores.kl:.4g}",
            f"{scores.agreement:.1%}",
        )
    console.print(table)
    console.print(f"Policy and report: {out / 'report.html'}", markup=False, highlight=False)
