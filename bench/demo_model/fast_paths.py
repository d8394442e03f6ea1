"""Faster ways to compute the model's own mathematics in training on a CPU.

Both are registered under a name in the interfaces that transformers offers for this; nothing
is patched, and a model that does not ask for them by name never meets them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

# The vision tower hands over all images at once only where the name says "flash"; otherwise it
# calls attention once per image.
_ATTENTION = "flash_equal_images"
_EXPERTS = "sorted_experts"


def use_fast_paths(model: PreTrainedModel) -> None:
    """Let a model compute its experts and its vision attention the fast way, in place."""
    AttentionInterface.register(_ATTENTION, equal_images_attention)
    ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, sorted_experts)
    model.set_experts_implementation(_EXPERTS)
    model.model.visual.config._attn_implementation = _ATTENTION


def equal_images_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within images of equal size in one batched call.

    Args:
        module: The attention module, not used.
        query: [1, heads, images * patches, head size]; ``key`` and ``value`` likewise.
        key: See ``query``.
        value: See ``query``.
        attention_mask: Always None.
        scaling: Factor of the scores.
        cu_seq_lens_q: int [images + 1], where each image starts.

    Returns:
        [1, images * patches, heads, head size], and None for the attention weights.
    """
    images = len(cu_seq_lens_q) - 1
    q, k, v = (part[0].unflatten(1, (images, -1)).transpose(0, 1) for part in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)[None], None


def sorted_experts(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Run each expert once over its tokens, sorted by expert.

    Unbinding the weights once spares the backward pass a gradient the size of all experts for
    every single expert.

    Args:
        experts: A module with ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I].
        hidden_states: [T, H].
        top_k_index: int64 [T, K].
        top_k_weights: [T, K].

    Returns:
        [T, H].
    """
    chosen = top_k_index.flatten()
    order = chosen.argsort(stable=True)
    token = order // top_k_index.shape[1]
    counts = torch.bincount(chosen, minlength=experts.num_experts).tolist()
    gate, up = _linear_by_expert(hidden_states[token], counts, experts.gate_up_proj).chunk(2, -1)
    # Weighting here rather than after the last product touches I columns in place of H.
    inner = experts.act_fn(gate) * up * top_k_weights.flatten()[order, None]
    outputs = _linear_by_expert(inner, counts, experts.down_proj)
    return torch.zeros_like(hidden_states).index_add_(0, token, outputs)


def _linear_by_expert(rows: Tensor, counts: list[int], weights: Tensor) -> Tensor:
    """Multiply consecutive groups of rows [N, in] with one matrix of [E, out, in] each."""
    groups = zip(rows.split(counts), weights.unbind(0), strict=True)
    return torch.cat([F.linear(group, weight) for group, weight in groups])
