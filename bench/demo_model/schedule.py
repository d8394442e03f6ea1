"""Stages of training: how long, how fast, and one optimizer step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One stage of training: linear warm-up, then cosine decay to 2 % of the learning rate.

    Attributes:
        name: Names the file the stage leaves behind.
        seed: Seed of its questions and its augmentation.
        steps: How many batches it trains on.
        decay_steps: Where the decay would end; later than ``steps`` where the next stage
            goes on from a rate that is still high.
        batch: Images or chats in a batch.
        learning_rate: The highest learning rate.
        warmup: Steps of warm-up.
        favoured: Kinds of question asked more often at first.
        favoured_steps: The step at which they are asked no more often than others.
    """

    name: str
    seed: int
    steps: int
    decay_steps: int
    batch: int
    learning_rate: float
    warmup: int
    favoured: tuple[str, ...] = ()
    favoured_steps: int = 1

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.decay_steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * decay

    def favoured_share_at(self, step: int) -> float:
        """Return the share of image questions reserved for the favoured kinds at a step."""
        return max(0.0, 0.8 * (1 - step / self.favoured_steps))


def build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW, with weight decay on matrices only."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """Take one step against a scalar loss, its gradient clipped to norm 1."""
    parameters = []
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        parameters += group["params"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
