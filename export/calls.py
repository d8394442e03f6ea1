"""What programs are called with: the names of components and tensors, and what follows a call.

``text`` and ``image`` are whole calls that give the logits of every token. ``prefill`` and
``decode`` generate text: the prompt, images included, and one more token, with a cache that goes
from program to program as plain tensors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]

TEXT, IMAGE, PREFILL, DECODE = "text", "image", "prefill", "decode"
COMPONENTS = (TEXT, IMAGE, PREFILL, DECODE)
"""All names of components."""

THETA = "theta"
"""The name of the thresholds, where they are an input."""

PAST = "past_"
"""What the names of a cache's tensors begin with: ``past_0_key``, ``past_0_value``, ..."""


TOKENS = ("input_ids", "attention_mask", "position_ids")
"""The names of what says something of each token."""


def is_cached(component: str) -> bool:
    """Return whether a component returns a cache and the last token's logits alone."""
    return component in (PREFILL, DECODE)


def cache_inputs(cache: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a cache as the inputs of the next call."""
    kinds = ("key", "value")
    return {f"{PAST}{i // 2}_{kinds[i % 2]}": value for i, value in enumerate(cache)}


def image_sizes(inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs that tell the sizes of images, such as ``image_grid_thw``."""
    of_tokens = inputs["input_ids"].shape
    return {
        name: value
        for name, value in inputs.items()
        if not value.is_floating_point()
        and name not in TOKENS
        and value.shape != of_tokens
        and not name.startswith(PAST)
    }


def images(inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs that hold what is in images."""
    return {
        name: value
        for name, value in inputs.items()
        if value.is_floating_point() and name != THETA and not name.startswith(PAST)
    }


def output_names(count: int) -> tuple[str, ...]:
    """Name what a program returns."""
    kinds = ("key", "value")
    return ("logits", *(f"present_{i // 2}_{kinds[i % 2]}" for i in range(count - 1)))


def step_inputs(before: Inputs, token: Tensor, cache: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what ``decode`` takes next.

    Args:
        before: the inputs of the call before.
        token: ``[B, 1]``, what comes next.
        cache: what the call before returned.
    """
    mask = torch.cat([before["attention_mask"], torch.ones_like(token)], dim=1)
    positions = next_positions(before["position_ids"])
    step = {"input_ids": token, "attention_mask": mask, "position_ids": positions}
    tuned = {THETA: before[THETA]} if THETA in before else {}
    return {**step, **cache_inputs(cache), **tuned}


def text_positions(mask: Tensor) -> Tensor:
    """Return ``[B, S]`` positions that count each prompt's own tokens from its mask ``[B, S]``."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


def next_positions(positions: Tensor) -> Tensor:
    """Return what follows positions ``[B, S]`` or ``[A, B, S]``: ``[B, 1]`` or ``[A, B, 1]``."""
    last = positions.amax(dim=-1, keepdim=True)
    if last.dim() == 3:
        last = last.amax(dim=0, keepdim=True).repeat(len(positions), 1, 1)
    return last + 1
