"""The recipe of the demo model: ``python -m modes_fx.bench.demo_model.training --out DIR``.

Stage 1 teaches the vision tower to name the digit in each quarter of an image and each token's
place in it. Stage 2 trains
everything on chats: first mostly on reading digits, then evenly on all kinds of question.
Trained from scratch in one stage, a model of this size does not learn to see.
"""

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_model as load_into
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.fast_paths import use_fast_paths
from modes_fx.bench.demo_model.model import IMAGE_TOKENS, build_model, build_processor
from modes_fx.bench.demo_model.questions import heldout_questions

SEED = 0
LOG_EVERY = 100
EVALUATE_EVERY = 800


@dataclass(frozen=True)
class Stage:
    """How long and how fast to train: linear warm-up, then cosine decay to 2 %."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * decay


VISION = Stage(steps=1_600, batch=32, learning_rate=2e-3, warmup=50)
LANGUAGE = Stage(steps=3_200, batch=16, learning_rate=2e-3, warmup=200)
TURNS = 6
READING_UNTIL = 0.45
BALANCE = 0.01
CONCENTRATION = 0.01


class VisionTeacher(nn.Module):
    """Asks the vision tower's outputs what they show and where; only for pre-training."""

    def __init__(self, tower: PreTrainedModel) -> None:
        """Put linear classifiers on each of the tower's outputs.

        Args:
            tower: The vision tower.
        """
        super().__init__()
        width = tower.config.out_hidden_size
        outputs = 1 + len(tower.config.deepstack_visual_indexes)
        self.tower = tower
        self.digit_heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(outputs))
        self.place_heads = nn.ModuleList(nn.Linear(width, IMAGE_TOKENS) for _ in range(outputs))

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[list[Tensor], ...]:
        """Return digit logits [images, 4, 10] and place logits [images, 16, 16] of each output.

        The final output comes first, then the intermediate ones.
        """
        output = self.tower(pixel_values, grid_thw=image_grid_thw)
        outputs = [
            tokens.unflatten(0, (-1, IMAGE_TOKENS))
            for tokens in (output.pooler_output, *output.deepstack_features)
        ]
        digits = zip(self.digit_heads, map(_quarters, outputs), strict=True)
        places = zip(self.place_heads, outputs, strict=True)
        return [head(seen) for head, seen in digits], [head(seen) for head, seen in places]


def pretrain_vision(tower: PreTrainedModel, batches: BatchMaker) -> None:
    """Train the vision tower alone, in place."""
    teacher = VisionTeacher(tower)
    optimizer = _build_optimizer(teacher)
    teacher.train()
    places = torch.arange(IMAGE_TOKENS).repeat(VISION.batch)
    for step in range(VISION.steps):
        inputs, labels = batches.draw_images(VISION.batch)
        digit_logits, place_logits = teacher(**inputs)
        digit = [F.cross_entropy(logits.flatten(0, 1), labels.flatten()) for logits in digit_logits]
        place = [F.cross_entropy(logits.flatten(0, 1), places) for logits in place_logits]
        loss = digit[0] + 0.3 * sum(digit[1:]) + 0.1 * sum(place)
        _update(optimizer, loss, VISION.rate_at(step))
        if (step + 1) % LOG_EVERY == 0:
            right = (digit_logits[0].argmax(-1) == labels).float().mean()
            _log(
                f"vision {step + 1}/{VISION.steps} loss {loss:.3f} "
                f"digits {right:.3f} place loss {place[0]:.4f}"
            )


def train_language(
    model: PreTrainedModel, processor: ProcessorMixin, batches: BatchMaker, out: Path
) -> None:
    """Train the whole model on chats, in place; keep a checkpoint at every evaluation."""
    optimizer = _build_optimizer(model)
    for step in range(LANGUAGE.steps):
        model.train()
        reading = max(0.0, 0.8 * (1 - step / (READING_UNTIL * LANGUAGE.steps)))
        inputs = batches.draw_chats(LANGUAGE.batch, TURNS, reading)
        answers, balance, concentration = chat_losses(model, inputs)
        loss = answers + BALANCE * balance + CONCENTRATION * concentration
        _update(optimizer, loss, LANGUAGE.rate_at(step))
        if (step + 1) % LOG_EVERY == 0:
            _log(
                f"language {step + 1}/{LANGUAGE.steps} answers {answers:.4f} "
                f"balance {balance:.3f} concentration {concentration:.3f}"
            )
        if (step + 1) % EVALUATE_EVERY == 0:
            _log(_evaluate(model, processor, n_per_kind=20))
            save_checkpoint(model, processor, out / f"step-{step + 1}")


def chat_losses(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
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
    output = model(**inputs, use_cache=False, output_router_logits=True)
    answers = F.cross_entropy(output.logits[:, :-1][mask[:, 1:]], inputs["input_ids"][mask])
    real = inputs["attention_mask"].flatten().bool()
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
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the demo model from scratch, with fixed seeds and steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    use_fast_paths(model)
    vision = out / "stages" / "vision.safetensors"
    if vision.exists():
        load_into(model.model.visual, vision)
    else:
        pretrain_vision(model.model.visual, BatchMaker(processor, load_digits("train"), SEED))
        vision.parent.mkdir(parents=True, exist_ok=True)
        save_model(model.model.visual, vision)
    torch.manual_seed(SEED)
    batches = BatchMaker(processor, load_digits("train"), SEED)
    train_language(model, processor, batches, out / "stages")
    save_checkpoint(model, processor, out)
    _log(_evaluate(model, processor, n_per_kind=100))


def _quarters(tokens: Tensor) -> Tensor:
    """Average the 4 x 4 tokens of images [N, 16, H] to quarters [N, 4, H]."""
    side = 2
    grid = tokens.unflatten(1, (side, side, side, side))
    return grid.mean(dim=(2, 4)).flatten(1, 2)


def _routing_losses(logits: Tensor, k: int) -> Tensor:
    """Return balance and concentration [2] of one layer's router logits [T, E]."""
    experts = logits.shape[1]
    probability = logits.softmax(dim=-1)
    top, chosen = probability.topk(k, dim=-1)
    load = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    share = top / top.sum(dim=-1, keepdim=True)
    balance = experts * (load * probability.mean(dim=0)).sum()
    return torch.stack([balance, k * share.square().sum(dim=-1).mean()])


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    parameters = []
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        parameters += group["params"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _evaluate(model: PreTrainedModel, processor: ProcessorMixin, n_per_kind: int) -> str:
    questions = heldout_questions(n_per_kind)
    answers = answer_questions(model.eval(), processor, questions)
    accuracy = accuracy_by_kind(questions, answers)
    return "held-out " + " ".join(f"{kind} {share:.1%}" for kind, share in accuracy.items())


def _log(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}")


if __name__ == "__main__":
    typer.run(train_demo_model)
