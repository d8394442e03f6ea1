"""Held-out accuracy: greedy generation, exact match; and what taking experts away costs.

``python -m modes_fx.bench.demo_model.evaluate`` prints the table of the model card.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx.bench.demo_model.chat import encode
from modes_fx.bench.demo_model.model import load_model
from modes_fx.bench.demo_model.questions import Question, heldout_questions


def answer_questions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    batch_size: int = 60,
) -> list[str]:
    """Answer questions by greedy generation.

    Args:
        model: The demo model.
        processor: Its processor.
        questions: Any questions; images may differ in number.
        batch_size: Questions answered at once.

    Returns:
        The answers in the order of the questions.
    """
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        inputs = encode(processor, questions[start : start + batch_size])
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said = tokens[:, inputs["input_ids"].shape[1] :]
        answers += processor.tokenizer.batch_decode(said, skip_special_tokens=True)
    return answers


def accuracy_by_kind(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers: "all", "image", "text" and every kind.

    Args:
        questions: The questions asked.
        answers: One answer to each; right only when equal to the expected one.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        for name in ("all", question.modality, question.kind):
            right[name].append(answer.strip() == question.answer)
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


@contextmanager
def reduced_experts(model: nn.Module, keep: int, *, renormalise: bool = False) -> Iterator[None]:
    """Within the context, let every token use only its ``keep`` most weighted experts.

    Args:
        model: A model whose routers return (logits, weights [T, K], expert ids [T, K]).
        keep: Experts left to each token; 0 removes the routed experts altogether.
        renormalise: Whether the kept weights are scaled to sum to 1.
    """

    def cut(_: nn.Module, __: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, weights, ids = output
        kept = weights * (torch.arange(weights.shape[1]) < keep)
        if renormalise:
            kept = kept / kept.sum(dim=1, keepdim=True)
        return logits, kept, ids

    routers = [module for name, module in model.named_modules() if name.endswith(".mlp.gate")]
    hooks = [router.register_forward_hook(cut) for router in routers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def report_accuracy(
    folder: Annotated[Path | None, typer.Argument(help="Checkpoint; default: the shipped.")] = None,
    n_per_kind: Annotated[int, typer.Option(help="Held-out questions of each kind.")] = 100,
) -> None:
    """Print held-out accuracy with all experts, with only the best one, and with none."""
    torch.set_num_threads(1)
    model, processor = load_model(folder=folder)
    questions = heldout_questions(n_per_kind)
    columns = {"all 8": accuracy_by_kind(questions, answer_questions(model, processor, questions))}
    for name, keep, renormalise in (
        ("best 1", 1, False),
        ("best 1, renormalised", 1, True),
        ("none", 0, False),
    ):
        with reduced_experts(model, keep, renormalise=renormalise):
            answers = answer_questions(model, processor, questions)
        columns[name] = accuracy_by_kind(questions, answers)
    table = Table("kind", *columns)
    for kind in columns["all 8"]:
        table.add_row(kind, *(f"{accuracy[kind]:.1%}" for accuracy in columns.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(report_accuracy)
