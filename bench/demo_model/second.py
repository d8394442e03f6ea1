"""The recipe of a second model: ``python -m modes_fx.bench.demo_model.second --out DIR``.

Half as deep, with half as many, wider experts: what is found on the demo model and not here was
tuned to the demo model. It starts from the demo model's vision tower, everything else from chance.
"""

from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import ProcessorMixin, Qwen3VLMoeForConditionalGeneration

from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.fast_paths import use_fast_paths
from modes_fx.bench.demo_model.model import Shape, build_model, build_processor, load_model
from modes_fx.bench.demo_model.questions import heldout_questions
from modes_fx.bench.demo_model.schedule import Stage
from modes_fx.bench.demo_model.training import save_checkpoint, train_chats

SHAPE = Shape(layers=4, experts=16, top_k=4, width=64)
CHATS = Stage(
    name="second",
    seed=2,
    steps=1_700,
    decay_steps=1_700,
    batch=12,
    learning_rate=2e-3,
    warmup=120,
    favoured=("digit", "row", "column", "read_all"),
    favoured_steps=600,
)


def load_second_model() -> tuple[Qwen3VLMoeForConditionalGeneration, ProcessorMixin]:
    """Load the trained second model in float32, and its processor."""
    with as_file(files(__package__).joinpath("second_checkpoint")) as shipped:
        return load_model(folder=shipped)


def train_second_model(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = CHATS.steps,
) -> None:
    """Train the second model, with a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(CHATS.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer, SHAPE)
    model.model.visual.load_state_dict(load_model()[0].model.visual.state_dict())
    use_fast_paths(model)
    train_chats(model, processor, replace(CHATS, steps=steps, decay_steps=steps), typer.echo)
    save_checkpoint(model, processor, out)
    questions = heldout_questions(100)
    answers = answer_questions(model.eval(), processor, questions)
    for kind, share in accuracy_by_kind(questions, answers).items():
        typer.echo(f"{kind}: {share:.1%}")


if __name__ == "__main__":
    typer.run(train_second_model)
