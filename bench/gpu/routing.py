"""Random choices of experts for counting and timing, with a given share of pairs skipped."""

import torch


def random_routing(
    tokens: int, top_k: int, experts: int, skip: float, skew: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """Draw ``[T, K]`` int64 experts, different ones for each token; skipped pairs get id E.

    Args:
        tokens: T.
        top_k: K.
        experts: E.
        skip: the share of pairs that are skipped, exact up to rounding.
        skew: 0 for experts that are chosen alike; s for popularity that falls as rank to the -s.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    popularity = torch.arange(1, experts + 1, dtype=torch.float64) ** -skew
    uniform = torch.rand(tokens, experts, dtype=torch.float64, generator=generator)
    noise = -(-uniform.log()).log()
    index = (popularity.log() + noise).topk(top_k, dim=-1).indices
    skipped = torch.randperm(tokens * top_k, generator=generator)[: round(skip * tokens * top_k)]
    return index.flatten().index_fill(0, skipped, experts).view(tokens, top_k)
