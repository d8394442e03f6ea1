"""The ops of mean compensation: what skipped experts put out on average is added in their place.

They stand beside ``modes_fx::gate`` and ``modes_fx::experts`` in a rewritten graph where the policy
has means, and are absent where it has none. T tokens, K experts per token, E experts, H hidden
size, C modality codes with means.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modes_fx.kernels import means as kernel
from modes_fx.kernels.epilogue import Body


@torch.library.custom_op("modes_fx::add_skipped_means", mutates_args=())
def add_skipped_means(
    out: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    means: Tensor,
) -> Tensor:
    """See ``modes_fx.kernels.reference.add_skipped_means``."""
    return kernel.add_skipped_means(out, index, weight, kept_index, modality, means)


@add_skipped_means.register_fake
def _(
    out: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    means: Tensor,
) -> Tensor:
    return out.new_empty(out.shape)


# How many pairs are skipped is read on the host, which a CUDA graph cannot capture.
@torch.library.custom_op(
    "modes_fx::collect_skipped", mutates_args=("sums",), tags=(torch.Tag.cudagraph_unsafe,)
)
def collect_skipped(
    sums: Tensor,
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> None:
    """See ``modes_fx.kernels.means.collect_skipped``; ``body`` is its JSON."""
    parsed = Body.from_json(body)
    kernel.collect_skipped(
        sums, x, index, weight, kept_index, modality, params, parsed, num_experts
    )


@collect_skipped.register_fake
def _(
    sums: Tensor,
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> None:
    return None
