"""What skipped experts would have put out on average: added at run time, collected in calibration.

In PyTorch, on any device, without a transfer to the host on the way to be added.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modes_fx.kernels import compact
from modes_fx.kernels.epilogue import Body

PAIRS_AT_ONCE = 8192
"""How many skipped pairs are computed at a time, to bound what that takes in memory."""

# T tokens, K experts per token, E experts, H hidden size, C modality codes with means.


def add_skipped_means(
    out: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    means: Tensor,
) -> Tensor:
    """Add the skipped experts' means; same contract as ``reference.add_skipped_means``.

    A few tokens look their rows of ``means`` up; for many, one product with all of ``means`` reads
    less.
    """
    share, row = _pairs(index, weight, kept_index, modality, means, out.dtype)
    table = means.flatten(0, 1)
    if row.numel() <= len(table):
        added = torch.bmm(share[:, None], table[row].to(share.dtype))[:, 0]
    else:
        spread = share.new_zeros(len(share), len(table)).scatter_add_(1, row, share)
        dtype = torch.promote_types(out.dtype, table.dtype)
        added = spread.to(dtype) @ table.to(dtype)
    return (out.to(share.dtype) + added.to(share.dtype)).to(out.dtype)


def add_skipped_means_inline(
    out: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    means: Tensor,
) -> Tensor:
    """Add the skipped experts' means; same contract as ``reference.add_skipped_means``.

    For a compiler that makes one loop of it: uncompiled it takes memory for every pair's row, and
    it looks rows up however many tokens there are, so that no size is a condition in a graph.
    """
    share, row = _pairs(index, weight, kept_index, modality, means, out.dtype)
    added = (share[:, :, None] * means.flatten(0, 1)[row].to(share.dtype)).sum(1)
    return (out.to(share.dtype) + added).to(out.dtype)


def _pairs(
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    means: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return for each pair ``[T, K]`` its weight if it is skipped, else 0, and its row of means."""
    codes, num_experts, _ = means.shape
    code = modality[: index.shape[0]].long()[:, None]
    skipped = (kept_index != index) & (index < num_experts) & (code < codes)
    wide = torch.promote_types(dtype, torch.float32)
    share = weight.to(wide).masked_fill(~skipped, 0)
    return share, (code * num_experts + index).masked_fill(~skipped, 0)


def collect_skipped(
    sums: Tensor,
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    kept_index: Tensor,
    modality: Tensor,
    params: Sequence[Tensor],
    body: Body,
    num_experts: int,
) -> None:
    """Add up what the skipped experts would have contributed, and their squared weights.

    With y the contribution of a pair (its weight is in it) and w its weight, ``sum(w * y) /
    sum(w**2)`` is the vector mu for which ``w * mu`` is nearest to y in the least squares.

    Args:
        sums: ``[C, E, H + 1]`` float32 by modality code and expert: the sum of w * y, and last that
            of w**2. Changed in place.
        x: ``[T, H]`` the experts' input.
        index: see ``reference.add_skipped_means``.
        weight: see there.
        kept_index: see there.
        modality: see there.
        params: the parameters of ``body``.
        body: what an expert computes.
        num_experts: E.
    """
    code = modality[: len(index)].long()
    skipped = (kept_index != index) & (index < num_experts) & (code < len(sums))[:, None]
    flat = sums.view(-1, sums.shape[-1])
    for pairs in skipped.nonzero().split(PAIRS_AT_ONCE):
        token, slot = pairs.unbind(1)
        e, w = index[token, slot], weight[token, slot]
        rows = compact.experts(x[token], e[:, None], w[:, None], params, body, num_experts)
        w = w.to(sums.dtype)[:, None]
        flat.index_add_(0, code[token] * num_experts + e, torch.cat((w * rows, w * w), dim=1))
