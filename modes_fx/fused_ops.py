"""``modes_fx::gated_experts``: the gate and the experts in one op, for devices that gain by it.

On a GPU the gate is then part of the kernels that sort the pairs, which saves a launch. What it
computes is what ``modes_fx::gate`` and ``modes_fx::experts`` compute one after the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modes_fx import ops
from modes_fx.kernels.triton.register import gated_experts as gated_experts_cuda


@torch.library.custom_op("modes_fx::gated_experts", mutates_args=())
def gated_experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output ``[T, H]`` and the kept index and weight ``[T, K]``.

    The arguments are those of ``modes_fx.ops.gate`` and ``modes_fx.ops.experts``.
    """
    kept_index, kept_weight = ops.gate(
        index, weight, modality, tokens, theta, num_experts, share, kept_mass_exponent, min_k
    )
    out = ops.experts(x, kept_index, kept_weight, params, body, num_experts)
    return out, kept_index, kept_weight


@gated_experts.register_fake
def _(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), index.new_empty(index.shape), weight.new_empty(weight.shape)


gated_experts.register_kernel("cuda", gated_experts_cuda)

GATED_EXPERTS = torch.ops.modes_fx.gated_experts.default
"""The op as a node of a graph names it."""
