"""lmms-eval scores the demo model as the demo does: ``python -m modes_fx.bench.evaluation``.

Exits with 1 where a score differs from the demo's own evaluation, or from one run to the next.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from modes_fx import SkipPolicy, attach, detach, modes_backend
from modes_fx.bench.demo_model import heldout_questions, load_model
from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.heldout_task import TASK
from modes_fx.calibration import preset_policy
from modes_fx.cli.eval import DEMO_QUESTIONS
from modes_fx.cli.eval import evaluate as evaluate_command

TARGET = 0.75
BATCH = 60


def own_scores(policy: SkipPolicy, count: int) -> tuple[float, float]:
    """Return the demo's accuracies, with every expert and with a policy, of the first questions."""
    model, processor = load_model()
    questions = heldout_questions(DEMO_QUESTIONS)[:count]

    def accuracy() -> float:
        return accuracy_by_kind(questions, answer_questions(model, processor, questions, BATCH))[
            "all"
        ]

    baseline = accuracy()
    attach(model, policy, target=TARGET)
    model.compile(backend=modes_backend, dynamic=True, options={"compiler": "eager"})
    skipping = accuracy()
    model._compiled_call_impl = None
    detach(model)
    return baseline, skipping


def scores_of(folder: Path, policy: Path, count: int) -> tuple[float, float]:
    """Return what ``modes-fx eval`` says of the same questions."""
    command: Callable[..., None] = evaluate_command
    command(
        "demo",
        policy,
        TARGET,
        [TASK],
        folder,
        limit=count,
        batch_size=BATCH,
        compiler="eager",
    )
    (score,) = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
    return score["baseline"], score["skipping"]


def main(
    questions: Annotated[int, typer.Option(help="How many are asked.")] = 140,
) -> None:
    """Evaluate the demo model by its own code once, and by lmms-eval twice."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        policy = preset_policy(load_model()[0], targets=[TARGET])
        policy.save_pretrained(work / "policy")
        rows = {"the demo": own_scores(policy, questions)}
        for run in ("first run", "second run"):
            rows[run] = scores_of(work / run, work / "policy", questions)
    table = Table("", "every expert", f"{TARGET:.0%} skipped")
    for name, scores in rows.items():
        table.add_row(name, *(f"{score:.4f}" for score in scores))
    Console().print(table)
    if len(set(rows.values())) > 1:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
