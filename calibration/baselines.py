"""What skipping is compared with: simpler choices of the pairs to keep, measured the same way.

Selections change the router's choice in front of the experts of the unmodified model: skipped pairs
get weight 0 and the id that its eager experts pass over. Thresholds without alpha go through the
evaluator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx import ops as ops  # registers count_pairs
from modes_fx.attach import find_expert_modules
from modes_fx.calibration.curves import quantile_curve, quantile_curves
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.pairs import Shares, hooked_pairs
from modes_fx.calibration.reach import reach
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.request import Request
from modes_fx.calibration.search import (
    Found,
    Tau,
    require_reachable,
    search_frontier,
    thetas_of,
)
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import Modality, ModalityName


class Selection(Protocol):
    """Chooses the pairs to keep."""

    @property
    def renormalise(self) -> bool:
        """Whether the kept weights are scaled to the sum they had before."""

    def keep(self, weight: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Return bool ``[T, K]``, the pairs to keep.

        Args:
            weight: ``[T, K]`` combine weights.
            tokens: bool ``[T]``, the tokens that are not padding.
            generator: the source of chance, on the CPU.
        """


@dataclass(frozen=True)
class ReducedTopK:
    """Keep the ``k`` pairs of largest weight of every token.

    Attributes:
        k: where it is not whole, so many tokens keep one more that it is met on average.
        renormalise: scale the kept weights to the sum they had before.
    """

    k: float
    renormalise: bool = False

    def keep(self, weight: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """See :class:`Selection`."""
        kept = torch.full((len(weight),), int(self.k))
        extra = round((self.k - int(self.k)) * int(tokens.sum()))
        kept[_draw(tokens, extra, generator)] += 1
        rank = weight.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return rank < kept.to(rank.device)[:, None]


@dataclass(frozen=True)
class RandomSkipping:
    """Skip pairs whatever their weight: in each call and layer the given part of them, exactly.

    Attributes:
        skip_ratio: the part to skip.
        renormalise: scale the kept weights to the sum they had before.
    """

    skip_ratio: float
    renormalise: bool = False

    def keep(self, weight: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """See :class:`Selection`."""
        pairs = tokens[:, None].expand(weight.shape)
        skipped = round(self.skip_ratio * int(pairs.sum()))
        kept = torch.ones(weight.shape, dtype=torch.bool)
        kept.view(-1)[_draw(pairs.flatten(), skipped, generator)] = False
        return kept.to(weight.device)


def measure_selection(
    model: PreTrainedModel, reference: Reference, selection: Selection, *, seed: int = 0
) -> Measurement:
    """Run the samples with a selection in every layer.

    Args:
        model: a transformers model, not attached; unchanged again afterwards.
        reference: recorded from the same model.
        selection: the pairs to keep.
        seed: where the selection leaves something to chance.
    """
    layers = find_expert_modules(model)
    counts = {path: torch.zeros(len(Modality), 2, dtype=torch.int64) for path in layers}
    generator = torch.Generator().manual_seed(seed)

    def select(path: str, codes: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        num_experts = next(layers[path].parameters()).shape[0]
        kept = selection.keep(weight, codes.cpu() != Modality.PADDING, generator)
        index = index.masked_fill(~kept, num_experts)
        torch.ops.modes_fx.count_pairs(counts[path], index.cpu(), codes.cpu(), num_experts)
        kept_weight = weight.masked_fill(~kept, 0)
        if selection.renormalise:
            kept_sum = kept_weight.sum(-1, keepdim=True)
            scale = weight.sum(-1, keepdim=True) / kept_sum
            kept_weight = kept_weight * scale.masked_fill(kept_sum == 0, 0)
        return index, kept_weight

    implementations = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        with hooked_pairs(model, select):
            difference = reference.compare(model)
    finally:
        model.set_experts_implementation(implementations)
    return Measurement(difference, counts)


def single_threshold(
    evaluator: Evaluator,
    policy: SkipPolicy,
    shares: Shares,
    target: float,
    *,
    tolerance: float = 0.005,
) -> Found:
    """Find the threshold on the share, the same in all layers and modalities, for a target.

    Args:
        evaluator: inside its ``with`` block.
        policy: holds the options; its alpha is not used.
        shares: as ``recorded_shares`` collects them.
        target: the skip ratio.
        tolerance: by how much it may be exceeded.

    Raises:
        UnreachableTargetError: skipping all there is to skip misses the target.
    """
    plain, modalities = _without_alpha(policy, shares)
    observed = [share for of_layer in shares.values() for share in of_layer.values()]
    curve = quantile_curve(torch.cat(observed).double())

    @cache
    def at(u: float) -> tuple[Tau, Measurement]:
        tau = dict.fromkeys(modalities, curve(u))
        return tau, evaluator.measure(Request.of(thetas_of(plain, tau)))

    require_reachable(target, at(1.0)[1].skip_ratio)
    u = reach(lambda u: at(u)[1].skip_ratio, target, tolerance, guess=target)
    return Found(target, *at(u))


def two_thresholds(
    evaluator: Evaluator,
    policy: SkipPolicy,
    shares: Shares,
    targets: Sequence[float],
    **search: Any,
) -> Mapping[float, Found]:
    """Find a threshold on the share for each modality, the same in all layers, for each target.

    Args:
        evaluator: inside its ``with`` block.
        policy: holds the options; its alpha is not used.
        shares: as ``recorded_shares`` collects them.
        targets: skip ratios.
        search: options of ``search_frontier``.
    """
    plain, modalities = _without_alpha(policy, shares)
    curves = quantile_curves(shares, plain, modalities)
    return search_frontier(evaluator, plain, targets, curves, **search).found


def _without_alpha(policy: SkipPolicy, shares: Shares) -> tuple[SkipPolicy, list[ModalityName]]:
    """A policy whose thresholds are tau itself, and the modalities that have pairs to skip."""
    modalities = [name for name, share in next(iter(shares.values())).items() if len(share)]
    alpha = {path: dict.fromkeys(modalities, 1.0) for path in shares}
    return policy.model_copy(update={"alpha": alpha}), modalities


def _draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return so many of the places where ``candidates`` is true."""
    places = candidates.nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)[:count]]
