"""Gated experts in PyTorch that do no work for skipped pairs: compact, then a GEMM per expert.

The portable implementation of the experts op, on any device. Pairs are sorted by expert, skipped
ones fall off the end, and every later step sees kept rows only.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from modes_fx.kernels.epilogue import Body

ROWS_AT_ONCE = 8192
"""How many rows are widened to float32 at a time, to bound what that takes in memory."""

# T tokens, K experts per token, E experts, H hidden size, P kept pairs.


def experts(
    x: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    params: Sequence[torch.Tensor],
    body: Body,
    num_experts: int,
) -> torch.Tensor:
    """Sum the kept experts' outputs of every token; same contract as ``reference.experts``."""
    num_slots = index.shape[1]
    flat = index.reshape(-1)
    pairs_per_expert = torch.bincount(flat.clamp(max=num_experts), minlength=num_experts + 1)
    bounds = list(accumulate(pairs_per_expert[:num_experts].tolist(), initial=0))
    pair = flat.argsort(stable=True)[: bounds[-1]]  # [P]
    token = pair // num_slots

    def matmul(rows: torch.Tensor, matrix: torch.Tensor, transposed: bool) -> torch.Tensor:
        width = matrix.shape[1] if transposed else matrix.shape[2]
        out = rows.new_empty(rows.shape[0], width)
        for e, (start, end) in enumerate(pairwise(bounds)):
            if start < end:
                expert_matrix = matrix[e].T if transposed else matrix[e]
                torch.mm(rows[start:end], expert_matrix, out=out[start:end])
        return out

    rows = body.run(x[token], weight.reshape(-1)[pair, None], params, flat[pair], matmul)
    out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for part, tokens in zip(rows.split(ROWS_AT_ONCE), token.split(ROWS_AT_ONCE), strict=True):
        out.index_add_(0, tokens, part.to(out.dtype))
    return out.to(x.dtype)
