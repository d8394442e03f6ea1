"""The demo model's held-out accuracy through an artifact, next to that in PyTorch.

``python -m modes_fx.bench.export.accuracy`` exports prefill and decode, lets both answer the same
questions, and exits with 1 where the accuracies differ.
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from modes_fx import SkipPolicy, attach, detach, modes_backend
from modes_fx.bench.demo_model import encode, heldout_questions, load_model
from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.questions import Question
from modes_fx.calibration import preset_policy
from modes_fx.export import export
from modes_fx.export.calls import DECODE, PREFILL
from modes_fx.export.components import prompt_inputs
from modes_fx.export.runner import Runner

NEW_TOKENS = 6
BATCH = 10


class Answers(NamedTuple):
    """What was answered, by question, in PyTorch and by the artifact."""

    questions: Sequence[Question]
    in_torch: Sequence[str]
    exported: Sequence[str]

    def accuracy(self) -> list[Mapping[str, float]]:
        """Return the accuracy by kind of both."""
        return [accuracy_by_kind(self.questions, said) for said in (self.in_torch, self.exported)]


def answer_twice(policy: SkipPolicy | None, target: float, format: str, n_per_kind: int) -> Answers:
    """Answer held-out questions with the demo model in float32 and with an artifact of it.

    Args:
        policy: for it; None: the preset, which needs no calibration.
        target: of the policy.
        format: of the artifact.
        n_per_kind: questions of each kind.
    """
    model, processor = load_model()
    model = model.float()
    policy = policy or preset_policy(model, targets=[target])
    questions = heldout_questions(n_per_kind)
    attach(model, policy, target=target)
    model.compile(backend=modes_backend, options={"compiler": "eager"})
    in_torch = answer_questions(model, processor, questions)
    model._compiled_call_impl = None
    detach(model)
    exported = [""] * len(questions)
    # A program is for one number of images.
    by_images: dict[int, list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        by_images[len(question.images)].append(position)
    for positions in by_images.values():
        some = [questions[position] for position in positions]
        said = _answer(model, processor, policy, target, format, some)
        for position, answer in zip(positions, said, strict=True):
            exported[position] = answer
    return Answers(questions, in_torch, exported)


def _answer(
    model: Any,
    processor: Any,
    policy: SkipPolicy,
    target: float,
    format: str,
    questions: Sequence[Question],
) -> list[str]:
    answers: list[str] = []
    end = processor.tokenizer.eos_token_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        runner = None
        for start in range(0, len(questions), BATCH):
            batch = list(questions[start : start + BATCH])
            filled = batch + [batch[-1]] * (BATCH - len(batch))
            inputs = encode(processor, filled)
            if runner is None:
                calls = {PREFILL: inputs, DECODE: inputs}
                export(model, policy, target, calls, folder, format=format)
                runner = Runner(folder)
            tokens = runner.generate(prompt_inputs(model, inputs), NEW_TOKENS, stop=[end])
            said = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            answers += said[: len(batch)]
    return answers


def main(
    policy: Annotated[str | None, typer.Option(help="Folder; by default the preset.")] = None,
    target: Annotated[float, typer.Option(help="One of its targets.")] = 0.75,
    format: Annotated[str, typer.Option(help="Of the artifact.")] = "onnx",
    per_kind: Annotated[int, typer.Option(help="Questions of each kind.")] = 30,
) -> None:
    """Compare the accuracies."""
    torch.set_num_threads(1)
    given = SkipPolicy.from_pretrained(policy) if policy else None
    answers = answer_twice(given, target, format, per_kind)
    in_torch, exported = answers.accuracy()
    table = Table("kind", "PyTorch", format)
    for kind, share in in_torch.items():
        table.add_row(kind, f"{share:.1%}", f"{exported[kind]:.1%}")
    console = Console()
    console.print(table)
    same = sum(map(str.__eq__, answers.in_torch, answers.exported))
    console.print(f"{same} of {len(answers.questions)} answers are the same")
    if in_torch != exported:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
