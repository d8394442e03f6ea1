"""What the experts are called with: random tokens, a routing, and thresholds that skip a share.

The layer's weights must come from memory, not from a cache that an earlier call filled, as they do
in a model of many layers. So every call uses other experts than the calls before it: a cycle of
calls goes through more weights than four times the last-level cache before it touches one again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modes_fx.bench.shapes import LayerShape
from modes_fx.passes.rewrite import GATE
from modes_fx.vocabulary import Modality, default_share

# T tokens, H hidden size, E experts, K experts per token.

CACHES = 4
"""How many times the last-level cache a cycle of calls must go through."""
ROUTINGS = 4
"""How many routings a copy of the layer is called with where a call has several tokens."""


@dataclass(frozen=True)
class Call:
    """One call of the experts.

    Attributes:
        copy: which copy of the layer's weights.
        x: ``[T, H]`` hidden states.
        index: ``[T, K]`` int64, the router's choice.
        weight: ``[T, K]`` its combine weights, in the dtype of ``x``.
        theta: ``[M]`` float32, the thresholds that skip the share asked for.
        modality: ``[T]`` int8 codes, half of them vision and half text.
        tokens: ``[1]`` int64, T.
        kept_index: ``[T, K]`` what the gate makes of ``index``.
        kept_weight: ``[T, K]`` what the gate makes of ``weight``.
    """

    copy: int
    x: Tensor
    index: Tensor
    weight: Tensor
    theta: Tensor
    modality: Tensor
    tokens: Tensor
    kept_index: Tensor
    kept_weight: Tensor


@dataclass(frozen=True)
class Cycle:
    """Calls to be made one after another, over and over.

    Attributes:
        calls: at one number of tokens and one skip ratio.
        pairs: T * K.
        kept: how many pairs of a call are kept, on average.
        hit: how many experts a call computes, on average.
        streamed: bytes of weights that a cycle goes through, each counted once.
    """

    calls: Sequence[Call]
    pairs: int
    kept: float
    hit: float
    streamed: int

    @property
    def skip_ratio(self) -> float:
        """The share of pairs that is skipped."""
        return 1 - self.kept / self.pairs


def copies_needed(
    shape: LayerShape, tokens: int, skip: float, dtype: torch.dtype, cache: int
) -> int:
    """Return how many copies of the layer make a cycle long enough.

    Args:
        shape: the layer.
        tokens: T.
        skip: the largest skip ratio asked for.
        dtype: of the weights.
        cache: bytes of the last-level cache.
    """
    streamed = make_cycle(shape, tokens, skip, dtype, copies=1).streamed
    return math.ceil(CACHES * cache / streamed)


def make_cycle(
    shape: LayerShape, tokens: int, skip: float, dtype: torch.dtype, copies: int
) -> Cycle:
    """Make the calls of a cycle; the tokens and the router's choice are the same for every skip.

    Args:
        shape: the layer.
        tokens: T.
        skip: the skip ratio to be had; the thresholds come as close as the shares allow.
        dtype: of the tokens and combine weights.
        copies: how many copies of the layer there are.

    Raises:
        ValueError: a skip ratio outside of 0 to 1, or no tokens.
    """
    if not 0 <= skip < 1:
        raise ValueError(f"a skip ratio is at least 0 and below 1, got {skip}")
    if tokens < 1:
        raise ValueError(f"a call has at least one token, got {tokens}")
    generator = torch.Generator().manual_seed(tokens)
    routings = shape.experts // shape.top_k if tokens == 1 else ROUTINGS
    calls = []
    order = torch.randperm(shape.experts, generator=generator).split(shape.top_k)
    for number in range(routings):
        for copy in range(copies):
            logits = torch.randn(tokens, shape.experts, generator=generator)
            if tokens == 1:  # the calls of a cycle share no expert
                logits[0, order[number]] += 100
            top, index = logits.softmax(-1).topk(shape.top_k, dim=-1)
            weight = (top / top.sum(-1, keepdim=True)).to(dtype)
            x = torch.randn(tokens, shape.hidden, generator=generator).to(dtype)
            calls.append(_gated(shape, copy, x, index, weight, skip))
    hit = [set(_experts_hit(shape, call)) for call in calls]
    touched = {(call.copy, expert) for call, own in zip(calls, hit, strict=True) for expert in own}
    kept = sum(int((call.kept_index < shape.experts).sum()) for call in calls)
    return Cycle(
        calls,
        pairs=tokens * shape.top_k,
        kept=kept / len(calls),
        hit=sum(map(len, hit)) / len(calls),
        streamed=len(touched) * shape.expert_parameters * dtype.itemsize,
    )


def threshold(share: Tensor, skip: float) -> float:
    """Return the quantile of routing shares below which about ``skip`` of them are.

    It lies in the middle between two neighbours. At least one pair is kept; equal shares are kept
    together.

    Args:
        share: ``[T, K]`` float32.
        skip: the share of pairs to be skipped.
    """
    ordered = share.flatten().sort().values
    skipped = min(round(skip * ordered.numel()), ordered.numel() - 1)
    if skipped == 0:
        return -math.inf
    return float((ordered[skipped - 1] + ordered[skipped]) / 2)


def _gated(
    shape: LayerShape, copy: int, x: Tensor, index: Tensor, weight: Tensor, skip: float
) -> Call:
    share = weight.float() / weight.float().sum(-1, keepdim=True)
    theta = torch.full((len(Modality),), threshold(share, skip))
    modality = torch.full((len(x),), Modality.TEXT.value, dtype=torch.int8)
    modality[: len(x) // 2] = Modality.VISION.value
    tokens = torch.tensor([len(x)])
    kept_index, kept_weight = run_gate(shape, index, weight, modality, tokens, theta)
    return Call(copy, x, index, weight, theta, modality, tokens, kept_index, kept_weight)


def run_gate(
    shape: LayerShape,
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor,
    theta: Tensor,
) -> tuple[Tensor, Tensor]:
    """Call the gate as a rewritten graph does, with the policy's default options."""
    kept: tuple[Tensor, Tensor] = GATE(
        index, weight, modality, tokens, theta, shape.experts, default_share(shape.top_k), 0.0, 0
    )
    return kept


def _experts_hit(shape: LayerShape, call: Call) -> list[int]:
    chosen: list[int] = call.kept_index.unique().tolist()
    return [expert for expert in chosen if expert < shape.experts]
