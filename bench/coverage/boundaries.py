"""Where models outside transformers' experts registry hand over their combine weights.

Each hook stands at a boundary of the model's own Python code, shows the weights as ``[T, K]`` to a
mask, and puts what the mask returns in their place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Mask = Callable[[Tensor], Tensor]
"""Takes combine weights ``[T, K]``, returns them with 0 for skipped pairs."""

WEIGHTS_AS_ARGUMENT = frozenset(
    {
        "DbrxExperts",
        "LongcatFlashExperts",
        "NllbMoeExperts",
        "Step3p7Experts",
        "SwitchTransformersExperts",
    }
)
"""Experts whose forward takes (x, chosen experts, combine weights)."""


def is_registered(module: nn.Module) -> bool:
    """Return whether a module owns experts that transformers' registry dispatches."""
    return hasattr(module, "_is_expert_parallel")


def hook_unregistered(module: nn.Module, mask: Mask) -> list[RemovableHandle]:
    """Mask the weights of a module with experts outside the registry; no hook for other modules."""
    name = type(module).__name__
    if name in WEIGHTS_AS_ARGUMENT:
        return [module.register_forward_pre_hook(lambda _, args: (*args[:-1], mask(args[-1])))]
    if name == "Llama4TextMoe":
        router: Any = module.router
        return [router.register_forward_hook(lambda r, _, out: _mask_dense(mask, out, r.top_k))]
    if name == "JetMoeMoE":
        router = module.router
        return [router.register_forward_hook(lambda r, _, out: _mask_sorted(mask, out, r.top_k))]
    if name == "DogeCDMoE":
        return _hook_product_keys(module, mask)
    return []


def _mask_dense(mask: Mask, output: tuple[Tensor, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """Mask scores ``[T, E]`` that are 0 for the experts that were not chosen."""
    scores, logits = output
    weight, index = scores.topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, index, mask(weight)), logits


def _mask_sorted(mask: Mask, output: tuple[Any, ...], top_k: int) -> tuple[Any, ...]:
    """Mask weights that are sorted by expert, ``[T * K]``."""
    order, rows, weight, *rest = output
    pairs = torch.empty_like(weight)
    pairs[order] = weight
    return (order, rows, mask(pairs.view(-1, top_k)).flatten()[order], *rest)


def _hook_product_keys(module: Any, mask: Mask) -> list[RemovableHandle]:
    """Mask experts that are rows of an embedding, chosen by the sum of two keys.

    The weights pass no boundary, so they are computed again from the router's output.
    """
    seen: dict[str, Tensor] = {}

    def read_weights(_: nn.Module, __: Any, logits: Tensor) -> None:
        halves = logits.view(2, logits.shape[:-1].numel(), -1).topk(module.num_keys, dim=-1).values
        scores = (halves[0][..., None] + halves[1][..., None, :]).flatten(-2)
        weight = scores.topk(module.top_k, dim=-1).values.softmax(-1)
        seen["kept"] = mask(weight) != 0

    def mask_rows(_: nn.Module, __: Any, rows: Tensor) -> Tensor:
        return rows * seen["kept"][..., None]

    return [
        module.router_gate.register_forward_hook(read_weights),
        module.up_embed.register_forward_hook(mask_rows),
    ]
