"""The semantics in plain PyTorch: slow, obvious, and the oracle every kernel is held against."""

from collections.abc import Sequence

import torch

from modes_fx.kernels.epilogue import Body, Matmul
from modes_fx.kernels.panels import matrix_of

# T tokens, K experts per token, E experts, H hidden size.


def routing_share(weight: torch.Tensor, share: str) -> torch.Tensor:
    """Return the share pi of each pair, compared with the threshold (design: semantics).

    Args:
        weight: ``[T, K]`` combine weights as the model computes them.
        share: ``"renormalised"`` (w_i / sum_j w_j over the token's K experts; 0/0 counts as 0) or
            ``"weight"`` (w_i itself).

    Returns:
        ``[T, K]`` float32.

    Raises:
        ValueError: an unknown kind of share.
    """
    weight = weight.float()
    if share == "weight":
        return weight
    if share != "renormalised":
        raise ValueError(f"share must be 'renormalised' or 'weight', got {share!r}")
    total = weight.sum(dim=-1, keepdim=True)
    return torch.where(total == 0, 0.0, weight / total)


def gate(
    index: torch.Tensor,
    weight: torch.Tensor,
    modality: torch.Tensor,
    theta: torch.Tensor,
    num_experts: int,
    share: str,
    kept_mass_exponent: float = 0.0,
    min_k: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decide which (token, expert) pairs are computed.

    A pair is skipped when its share is below the threshold of its token's modality. A share that is
    NaN is below nothing, so that a model's NaN stays visible. Skipped pairs get the sentinel expert
    ``num_experts`` and weight 0.

    Args:
        index: ``[T, K]`` integer, the experts the router chose.
        weight: ``[T, K]`` the combine weights.
        modality: ``[>= T]`` int8, modality code of each token.
        theta: ``[M]`` float32, threshold by modality code; -inf keeps all, +inf skips all.
        num_experts: E.
        share: see :func:`routing_share`.
        kept_mass_exponent: beta; kept weights are multiplied by (kept share mass) ** -beta.
        min_k: at least this many pairs of a token are kept, those of largest share, unless the
            threshold is +inf.

    Returns:
        ``(index, weight)`` of the same shapes and dtypes as given.
    """
    pi = routing_share(weight, share)
    threshold = theta[modality[: index.shape[0]].long()][:, None]
    skip = pi < threshold
    if min_k > 0:
        rank = pi.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        skip = skip & ((rank >= min_k) | (threshold == torch.inf))
    kept_weight = weight
    if kept_mass_exponent:
        mass = pi.masked_fill(skip, 0).sum(-1, keepdim=True) / pi.sum(-1, keepdim=True)
        reweighted = skip.any(-1, keepdim=True) & (mass > 0)
        scale = torch.where(reweighted, mass, 1.0) ** -kept_mass_exponent
        kept_weight = (weight.float() * scale).to(weight.dtype)
    return index.masked_fill(skip, num_experts), kept_weight.masked_fill(skip, 0)


def sort_pairs(
    index: torch.Tensor, weight: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort the kept pairs by expert, and those of one expert by token and slot.

    Args:
        index: ``[T, K]`` integer; ids outside 0 .. E - 1 are skipped pairs.
        weight: ``[T, K]`` combine weights.
        num_experts: E.

    Returns:
        ``[P]`` int32 the token of each kept pair; ``[P]`` float32 its weight; ``[D]`` int32 the
        experts that have any, ascending; ``[D + 1]`` int64 where the pairs of each begin.
    """
    flat = index.flatten().long()
    pair = torch.where((flat >= 0) & (flat < num_experts))[0]
    pair = pair[flat[pair].argsort(stable=True)]
    expert, counts = flat[pair].unique_consecutive(return_counts=True)
    begin = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    token = (pair // index.shape[1]).int()
    return token, weight.flatten()[pair].float(), expert.int(), begin


def experts(
    x: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    params: Sequence[torch.Tensor],
    body: Body,
    num_experts: int,
) -> torch.Tensor:
    """Sum the kept experts' outputs of every token, one expert at a time.

    Args:
        x: ``[T, H]`` hidden states.
        index: ``[T, K]`` integer; ids >= ``num_experts`` are skipped pairs and never touched.
        weight: ``[T, K]`` combine weights.
        params: the parameters of ``body``.
        body: what an expert computes.
        num_experts: E.

    Returns:
        ``[T, H]`` in the dtype of ``x``, accumulated in float32 (float64 for float64).
    """
    out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for e in range(num_experts):
        token, slot = torch.where(index == e)
        if len(token) == 0:
            continue
        rows = body.run(
            x[token],
            weight[token, slot, None],
            params,
            torch.full_like(token, e),
            _expert_matmul(e),
        )
        out.index_add_(0, token, rows.to(out.dtype))
    return out.to(x.dtype)


def add_skipped_means(
    out: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    kept_index: torch.Tensor,
    modality: torch.Tensor,
    means: torch.Tensor,
) -> torch.Tensor:
    """Add, for every skipped pair, its weight times its expert's mean output, one pair at a time.

    Args:
        out: ``[T, H]`` the kept experts' output.
        index: ``[T, K]`` integer, the experts the router chose.
        weight: ``[T, K]`` combine weights, before the gate.
        kept_index: ``[T, K]`` the gate's choice; a pair is skipped where it differs from ``index``.
        modality: ``[>= T]`` int8, modality code of each token.
        means: ``[C, E, H]`` by modality code and expert; tokens of codes >= C get nothing.

    Returns:
        ``[T, H]`` in the dtype of ``out``, accumulated in float32 (float64 for float64).
    """
    total = out.to(torch.promote_types(out.dtype, torch.float32), copy=True)
    codes, experts_of_code, _ = means.shape
    for t, i in (kept_index != index).nonzero().tolist():
        code, e = int(modality[t]), int(index[t, i])
        if code < codes and e < experts_of_code:
            total[t] += weight[t, i].to(total.dtype) * means[code, e].to(total.dtype)
    return total.to(out.dtype)


def _expert_matmul(e: int) -> Matmul:
    def matmul(
        rows: torch.Tensor, weight: torch.Tensor, transposed: bool, bias: torch.Tensor | None
    ) -> torch.Tensor:
        matrix = matrix_of(weight, e).to(rows.dtype)
        matrix = matrix.T if transposed else matrix
        return rows @ matrix if bias is None else torch.addmm(bias[e].to(rows), rows, matrix)

    return matmul
