"""Gated experts in PyTorch that do no work for skipped pairs: compact, then a GEMM per expert.

The portable implementation of the experts op, on any device. Pairs are sorted by expert, skipped
ones fall off the end, and every later step sees kept rows only.
"""

from collections.abc import Sequence

import torch

from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.panels import matrix_of, output_columns

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
    pairs_of = torch.bincount(flat.clamp(max=num_experts), minlength=num_experts + 1).tolist()
    hit = [(e, count) for e, count in enumerate(pairs_of[:num_experts]) if count]
    if not hit:
        return torch.zeros_like(x)
    counts = [count for _, count in hit]
    pair = flat.argsort(stable=True)[: sum(counts)]  # [P]
    token = pair // num_slots

    def matmul(
        rows: torch.Tensor, matrix: torch.Tensor, transposed: bool, bias: torch.Tensor | None
    ) -> torch.Tensor:
        out = rows.new_empty(rows.shape[0], output_columns(matrix, transposed=transposed))
        parts = zip(hit, rows.split(counts), out.split(counts), strict=True)
        for (e, _), expert_rows, expert_out in parts:
            factor = matrix_of(matrix, e).to(rows.dtype)
            factor = factor.T if transposed else factor
            if bias is None:
                torch.mm(expert_rows, factor, out=expert_out)
            else:
                torch.addmm(bias[e].to(rows.dtype), expert_rows, factor, out=expert_out)
        return out

    rows = body.run(x[token], weight.reshape(-1)[pair, None], params, flat[pair], matmul)
    out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for part, tokens in zip(rows.split(ROWS_AT_ONCE), token.split(ROWS_AT_ONCE), strict=True):
        out.index_add_(0, tokens, part.to(out.dtype))
    return out.to(x.dtype)
