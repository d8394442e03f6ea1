"""What a model gives when pairs are skipped, without our code: its own loop, weights set to zero.

Random models have no calibrated policy. So the thresholds are, for each layer and phase, the
quantile of the routing shares that gives the skip ratio asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modes_fx.bench.layer.calls import threshold
from modes_fx.bench.model.phases import PHASES, Phase, Session

# T tokens of a call, K experts per token.


@dataclass(frozen=True)
class Reference:
    """One skip ratio, by phase.

    Attributes:
        logits: of every token of the phase.
        thresholds: of each layer, in order.
        pairs: of one call of one layer.
        kept: pairs that a call of a layer keeps, on average.
        hit: experts that they are of, on average.
    """

    logits: Mapping[Phase, Tensor]
    thresholds: Mapping[Phase, Sequence[float]]
    pairs: Mapping[Phase, float]
    kept: Mapping[Phase, float]
    hit: Mapping[Phase, float]


@dataclass(frozen=True)
class _Routed:
    """What one router gave in one call: shares ``[T, K]`` and experts ``[T, K]``."""

    share: Tensor
    index: Tensor


def make_reference(session: Session, skip: float) -> Reference:
    """Run both phases.

    Args:
        session: of a model that runs its loop over experts, uncompiled.
        skip: the skip ratio.
    """
    routers = [module for path, module in session.model.named_modules() if _is_router(path)]
    logits: dict[Phase, Tensor] = {}
    thresholds: dict[Phase, list[float]] = {}
    pairs: dict[Phase, float] = {}
    kept: dict[Phase, float] = {}
    hit: dict[Phase, float] = {}
    for phase in PHASES:
        with _recorded(routers) as calls:
            session.run(phase)
        shares = [torch.cat([call.share for call in own]) for own in calls]
        thresholds[phase] = [threshold(share, skip) for share in shares]
        with _recorded(routers, thresholds[phase]) as calls:
            logits[phase] = session.every_token(phase)
        chosen = [
            call.index[call.share >= theta]
            for own, theta in zip(calls, thresholds[phase], strict=True)
            for call in own
        ]
        pairs[phase] = sum(c.index.numel() for own in calls for c in own) / len(chosen)
        kept[phase] = sum(map(len, chosen)) / len(chosen)
        hit[phase] = sum(len(experts.unique()) for experts in chosen) / len(chosen)
    return Reference(logits, thresholds, pairs, kept, hit)


def typical_error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative error of the median token.

    Rounding makes some tokens choose another expert, in any two implementations, so that the worst
    token tells nothing of them.

    Args:
        actual: ``[T, V]`` logits.
        expected: ``[T, V]``.

    Returns:
        median over t of |actual_t - expected_t| / |expected_t|; infinite where a value is not a
        number or a shape differs.
    """
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    error = (actual.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(error.median())


def _is_router(path: str) -> bool:
    return path.endswith(".mlp.gate")


@contextmanager
def _recorded(
    routers: Sequence[nn.Module], thresholds: Sequence[float] | None = None
) -> Iterator[list[list[_Routed]]]:
    """Record what routers give; with thresholds, weights below them become zero."""
    calls: list[list[_Routed]] = [[] for _ in routers]

    def hook(place: int) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            router_logits, weight, index = output
            share = weight.float() / weight.float().sum(-1, keepdim=True)
            calls[place].append(_Routed(share, index))
            if thresholds is None:
                return output
            return router_logits, weight.masked_fill(share < thresholds[place], 0), index

        return after

    handles = [router.register_forward_hook(hook(place)) for place, router in enumerate(routers)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
