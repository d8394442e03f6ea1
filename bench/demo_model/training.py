"""The recipe of the demo model: ``python -m modes_fx.bench.demo_model.training --out DIR``.

First the vision tower learns to name digits and their places; trained from scratch with all
the rest, a model of this size does not learn to see. Then everything learns from chats:
mostly reading digits at first, later all kinds of question. A last stage dwells on the
kinds that take longest to learn.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.fast_paths import use_fast_paths
from modes_fx.bench.demo_model.model import build_model, build_processor
from modes_fx.bench.demo_model.questions import heldout_questions
from modes_fx.bench.demo_model.schedule import Stage, build_optimizer, update
from modes_fx.bench.demo_model.vision_pretraining import pretrain_vision

VISION = Stage(
    name="vision",
    seed=0,
    steps=1_600,
    decay_steps=1_600,
    batch=32,
    learning_rate=2e-3,
    warmup=50,
)
LANGUAGE = Stage(
    name="language",
    seed=0,
    steps=1_600,
    decay_steps=2_400,
    batch=16,
    learning_rate=2e-3,
    warmup=200,
    favoured=("digit", "row", "column", "read_all"),
    favoured_steps=840,
)
FINISH = Stage(
    name="finish",
    seed=1,
    steps=1_200,
    decay_steps=1_200,
    batch=16,
    learning_rate=1.5e-3,
    warmup=50,
    favoured=("count", "largest", "smallest"),
    favoured_steps=1_000,
)
TURNS = 6
BALANCE = 0.01
CONCENTRATION = 0.01
LOG_EVERY = 100
EVALUATE_EVERY = 200


def train_chats(
    model: PreTrainedModel, processor: ProcessorMixin, stage: Stage, log: Callable[[str], None]
) -> None:
    """Train the whole model on chats, in place.

    Args:
        model: The demo model.
        processor: Its processor.
        stage: Length, speed and favoured kinds.
        log: Called with lines of progress.
    """
    torch.manual_seed(stage.seed)
    batches = BatchMaker(processor, load_digits("train"), stage.seed)
    optimizer = build_optimizer(model)
    for step in range(stage.steps):
        model.train()
        share = stage.favoured_share_at(step)
        inputs = batches.draw_chats(stage.batch, TURNS, stage.favoured, share)
        answers, balance, concentration = chat_losses(model, inputs)
        loss = answers + BALANCE * balance + CONCENTRATION * concentration
        update(optimizer, loss, stage.rate_at(step))
        if (step + 1) % LOG_EVERY == 0:
            log(
                f"{step + 1}/{stage.steps} answers {answers:.4f} "
                f"balance {balance:.3f} concentration {concentration:.3f}"
            )
        if (step + 1) % EVALUATE_EVERY == 0:
            log(_evaluate(model, processor, n_per_kind=20))


def chat_losses(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three losses of a batch of chats.

    Args:
        model: The demo model.
        inputs: As from ``BatchMaker.draw_chats``.

    Returns:
        Scalars: cross-entropy of the answers' tokens; how unevenly each layer uses its experts
        (1 is even); how much of a token's weight its experts share unevenly (1 is even). The
        last keeps single experts from doing everything, so that each of the eight counts.
    """
    inputs = dict(inputs)
    mask = inputs.pop("answer_mask")
    # Padding is on the right, where causal attention cannot see it: no mask is needed.
    real = inputs.pop("attention_mask").flatten().bool()
    output = model.model(**inputs, use_cache=False, output_router_logits=True)
    logits = model.lm_head(output.last_hidden_state[:, :-1][mask[:, 1:]])
    answers = F.cross_entropy(logits, inputs["input_ids"][mask])
    k = model.config.text_config.num_experts_per_tok
    routing = [_routing_losses(logits[real], k) for logits in output.router_logits]
    balance, concentration = torch.stack(routing).mean(dim=0)
    return answers, balance, concentration


def save_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Save the weights in bfloat16 with config, tokenizer, processor and chat template."""
    deepcopy(model).bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)


def train_demo_model(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    stages: Annotated[Path, typer.Option(help="Folder for the weights after each stage.")] = Path(
        "out/demo_model"
    ),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the demo model from scratch, with fixed seeds and steps.

    A stage whose weights are already in the folder of stages is not trained again.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(VISION.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    use_fast_paths(model)
    for stage in (VISION, LANGUAGE, FINISH):
        file = stages / f"{stage.name}.safetensors"
        if file.exists():
            load_weights(model, file)
            continue
        if stage is VISION:
            batches = BatchMaker(processor, load_digits("train"), stage.seed)
            pretrain_vision(model.model.visual, batches, stage, _logger(stage))
        else:
            train_chats(model, processor, stage, _logger(stage))
        stages.mkdir(parents=True, exist_ok=True)
        save_weights(model, str(file))
    save_checkpoint(model, processor, out)
    _logger(FINISH)(_evaluate(model, processor, n_per_kind=100))


def _routing_losses(logits: Tensor, k: int) -> Tensor:
    """Return balance and concentration [2] of one layer's router logits [T, E]."""
    experts = logits.shape[1]
    probability = logits.softmax(dim=-1)
    top, chosen = probability.topk(k, dim=-1)
    load = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    share = top / top.sum(dim=-1, keepdim=True)
    balance = experts * (load * probability.mean(dim=0)).sum()
    return torch.stack([balance, k * share.square().sum(dim=-1).mean()])


def _evaluate(model: PreTrainedModel, processor: ProcessorMixin, n_per_kind: int) -> str:
    questions = heldout_questions(n_per_kind)
    answers = answer_questions(model.eval(), processor, questions)
    accuracy = accuracy_by_kind(questions, answers)
    return "held-out " + " ".join(f"{kind} {share:.1%}" for kind, share in accuracy.items())


def _logger(stage: Stage) -> Callable[[str], None]:
    return lambda line: typer.echo(f"{time.strftime('%H:%M:%S')} {stage.name} {line}")


if __name__ == "__main__":
    typer.run(train_demo_model)
