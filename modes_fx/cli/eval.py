"""``modes-fx eval``: what skipping costs, by the tasks of lmms-eval."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from modes_fx.cli.models import DEMO, load_named_model
from modes_fx.cli.quiet import quiet_libraries

INSTALL = "pip install 'modes-fx[eval]', or see docs/evaluate.md where torchvision cannot be had"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help='A local folder, the id of a hub repository, or "demo".'),
    ],
    policy: Annotated[Path, typer.Option(help="Folder of a policy for this model.")],
    target: Annotated[float, typer.Option(help="One of the policy's skip ratios.")],
    tasks: Annotated[
        list[str],
        typer.Option(
            help="Tasks or groups of lmms-eval; modes_paper is the paper's group, demo_heldout the "
            "demo model's own questions."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for scores, samples and answers; a run goes on from it.")
    ],
    base: Annotated[
        str, typer.Option(help="The chat model of lmms-eval that loads the model.")
    ] = "modes_fx_chat",
    base_args: Annotated[
        list[str] | None, typer.Option(help="More arguments of it, as name=value.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that are answered at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random, for both.")] = 0,
    compiler: Annotated[
        str, typer.Option(help="What compiles the rewritten graphs: inductor or eager.")
    ] = "inductor",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a model with every expert and with a policy, on the same documents.

    Example: modes-fx eval demo --policy my-policy --target 0.75 --tasks demo_heldout --out my-eval
    """
    try:
        from modes_fx.evaluation.comparison import compare, render
        from modes_fx.evaluation.run import Settings
        from modes_fx.evaluation.run import evaluate as evaluate_once
    except ImportError as error:
        raise ValueError(f"evaluation needs {error.name}: {INSTALL}") from error
    from modes_fx.bench.demo_model.heldout_task import TASK, write_task

    quiet_libraries()
    name, folders = model, []
    if model == DEMO:
        name = str(out / "demo-model")
        loaded, processor = load_named_model(DEMO)
        loaded.save_pretrained(name)
        processor.save_pretrained(name)
    if TASK in tasks:
        folders.append(write_task(out / "demo-task", DEMO_QUESTIONS))
    settings = Settings(
        name,
        tasks,
        out,
        base=base,
        options=dict(_pair(given) for given in base_args or []),
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        task_folders=folders,
        compiler=compiler,
    )
    baseline = evaluate_once(settings, None, None)
    skipping = evaluate_once(settings, policy, target)
    comparison = compare(model, str(policy), target, baseline, skipping)
    (out / "scores.json").write_text(comparison.model_dump_json(indent=2) + "\n", "utf-8")
    (out / "scores.md").write_text(render(comparison), encoding="utf-8")
    if as_json:
        typer.echo(comparison.model_dump_json(indent=2))
    else:
        Console().print(Markdown(render(comparison)))


DEMO_QUESTIONS = 10
"""Held-out questions of each kind, in the demo's task."""


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals:
        raise ValueError(f"--base-args takes name=value, not {given!r}")
    return name, value
