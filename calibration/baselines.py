"""What a policy is compared with: each method's rule, with a knob to skip as much as asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modes_fx.calibration.curves import quantile_curve, quantile_curves
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.pairs import Shares
from modes_fx.calibration.plane import Place, Plane, between, thetas_of
from modes_fx.calibration.reach import reach
from modes_fx.calibration.request import Request
from modes_fx.calibration.search import search_frontier
from modes_fx.calibration.selections import (
    ReducedTopK,
    RelativeRule,
    expert_similarity,
    measure_selection,
)
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import ModalityName

ONE_THRESHOLD = "one threshold"
ALPHA_ONE_THRESHOLD = "alpha, one threshold (GMLG without DMT)"
TWO_THRESHOLDS = "two thresholds (DMT without GMLG)"
MODES = "MoDES as published (GMLG and DMT)"
TOP_K = "reduced top-k"
TOP_K_RENORMALISED = "reduced top-k, renormalised"
RELATIVE = "relative rule"
NAEE = "NAEE"
MC_MOE = "MC-MoE, token-aware"
DIEP = "DiEP, skipping rule alone"

PROTECTED = 0.02
"""The part of the tokens that MC-MoE's rule leaves alone, as published."""


@dataclass(frozen=True)
class Baseline:
    """A way to skip.

    Attributes:
        name: of the method.
        measure: measures it at a level from 0 (skips nothing or little) to 1 (as much as it can).
        guess: about the level for a skip ratio.
        unmodified: whether it runs in the model as it was, not attached.
        note: in what it differs from what was published.
    """

    name: str
    measure: Callable[[Evaluator, float], Measurement]
    guess: Callable[[float], float] = field(default=lambda ratio: ratio)
    unmodified: bool = False
    note: str = ""

    def at_ratio(self, evaluator: Evaluator, ratio: float, tolerance: float) -> Measurement:
        """Measure it where it skips as much as asked for, or as much as it can if that is less."""
        most = self.measure(evaluator, 1.0)
        if most.skip_ratio <= ratio:
            return most
        middle, half = ratio - tolerance, 2 * tolerance
        level = reach(
            lambda s: self.measure(evaluator, s).skip_ratio, middle, half, guess=self.guess(ratio)
        )
        return self.measure(evaluator, level)


def baselines(
    evaluator: Evaluator,
    draft: SkipPolicy,
    shares: Shares,
    modalities: Sequence[ModalityName],
    targets: Sequence[float],
    top_k: int,
) -> dict[float, list[Baseline]]:
    """Return the methods to compare with, for each target.

    Args:
        evaluator: of the calibration data, which those with two constants are fitted on.
        draft: a policy with normalised alpha and the options.
        shares: the full model's on the calibration data.
        modalities: those to skip in.
        targets: skip ratios.
        top_k: K.
    """
    same = [
        one_threshold(ONE_THRESHOLD, without_alpha(draft), shares, modalities),
        one_threshold(
            ALPHA_ONE_THRESHOLD,
            draft.model_copy(update={"alpha_exponent": 1.0}),
            shares,
            modalities,
        ),
        *_selections(evaluator, shares, top_k),
    ]
    fitted = {
        TWO_THRESHOLDS: _places(evaluator, without_alpha(draft), shares, modalities, targets),
        MODES: _places(
            evaluator,
            draft.model_copy(update={"alpha_exponent": 1.0}),
            shares,
            modalities,
            targets,
        ),
    }
    return {
        target: [
            *same,
            *(through(name, plane, places[target]) for name, (plane, places) in fitted.items()),
        ]
        for target in targets
    }


def through(name: str, plane: Plane, place: Place, note: str = "") -> Baseline:
    """Return the method that goes from skipping nothing through a place to skipping all."""

    def measure(evaluator: Evaluator, level: float) -> Measurement:
        there = (
            between((0.0, 0.0), place, 2 * level)
            if level <= 0.5
            else between(place, (1.0, 1.0), 2 * level - 1)
        )
        return evaluator.measure(plane.request(there))

    return Baseline(name, measure, guess=lambda ratio: 0.5, note=note)


def one_threshold(
    name: str, policy: SkipPolicy, shares: Shares, modalities: Sequence[ModalityName]
) -> Baseline:
    """Return the method with one tau for all modalities; alpha tells layers and modalities apart.

    Args:
        name: what it is called.
        policy: holds alpha and its exponent.
        shares: the full model's.
        modalities: those to skip in.
    """

    def scale(path: str, modality: ModalityName) -> float:
        return policy.alpha[path][modality] ** policy.alpha_exponent

    products = [
        shares[path][modality].double() * scale(path, modality)
        for path in shares
        for modality in modalities
    ]
    curve = quantile_curve(torch.cat(products))

    def measure(evaluator: Evaluator, level: float) -> Measurement:
        tau = dict.fromkeys(modalities, curve(level))
        return evaluator.measure(Request.of(thetas_of(policy, tau)))

    return Baseline(name, measure)


def _places(
    evaluator: Evaluator,
    policy: SkipPolicy,
    shares: Shares,
    modalities: Sequence[ModalityName],
    targets: Sequence[float],
) -> tuple[Plane, Mapping[float, Place]]:
    plane = Plane(evaluator, policy, quantile_curves(shares, policy, modalities))
    frontier = search_frontier(plane, targets)
    return plane, {target: found.place for target, found in frontier.found.items()}


def _selections(evaluator: Evaluator, shares: Shares, top_k: int) -> list[Baseline]:
    ratios = {
        path: torch.cat([_relative(share, top_k) for share in of_layer.values()])
        for path, of_layer in shares.items()
    }
    pooled = quantile_curve(torch.cat(list(ratios.values())))
    by_layer = {path: quantile_curve(ratio) for path, ratio in ratios.items()}

    def layers(level: float) -> dict[str, float]:
        return {path: curve(level) for path, curve in by_layer.items()}

    def of(renormalise: bool) -> Callable[[Evaluator, float], Measurement]:
        return lambda e, level: measure_selection(e, ReducedTopK(top_k * (1 - level), renormalise))

    def relative(e: Evaluator, level: float) -> Measurement:
        return measure_selection(e, RelativeRule(pooled(level)))

    def naee(e: Evaluator, level: float) -> Measurement:
        return measure_selection(e, RelativeRule(layers(level)))

    def mc_moe(e: Evaluator, level: float) -> Measurement:
        return measure_selection(e, RelativeRule(layers(level), protected=PROTECTED))

    similar = expert_similarity(evaluator)

    def diep(e: Evaluator, level: float) -> Measurement:
        # Likeness is about a half, so that twice the quantile skips as much.
        doubled = {path: 2 * ratio for path, ratio in layers(level).items()}
        return measure_selection(e, RelativeRule(doubled, similarity=similar))

    part = top_k / max(top_k - 1, 1)

    def guess(ratio: float) -> float:
        return min(ratio * part, 1.0)

    first_kept = "every token keeps its first expert"
    return [
        Baseline(TOP_K, of(False), unmodified=True),
        Baseline(TOP_K_RENORMALISED, of(True), unmodified=True),
        Baseline(RELATIVE, relative, guess, True, f"SER, one ratio; {first_kept}"),
        Baseline(
            NAEE,
            naee,
            guess,
            True,
            "ratios to the first expert at one quantile of each layer, the median as published, "
            f"for any K; {first_kept}",
        ),
        Baseline(
            MC_MOE,
            mc_moe,
            guess,
            True,
            f"on top of NAEE's rule {PROTECTED:.0%} of the tokens keep all, by the L1 norm of the "
            "experts' input; published with a factor from attention",
        ),
        Baseline(
            DIEP,
            diep,
            guess,
            True,
            "NAEE's ratio times the likeness of the two experts, here of their weights; the "
            "pruning, which is learned, is left out",
        ),
    ]


def _relative(share: Tensor, top_k: int) -> Tensor:
    """Return each pair's share over its token's largest, without the largest itself."""
    rows = share.double().view(-1, top_k)
    ordered = rows.sort(dim=-1, descending=True).values
    return (ordered[:, 1:] / ordered[:, :1].clamp(min=1e-300)).flatten()


def without_alpha(draft: SkipPolicy) -> SkipPolicy:
    """Return a policy whose thresholds are tau itself in every layer."""
    alpha = {path: dict.fromkeys(constants, 1.0) for path, constants in draft.alpha.items()}
    return draft.model_copy(update={"alpha": alpha, "alpha_exponent": 1.0})
