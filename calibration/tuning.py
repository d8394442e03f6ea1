"""From alpha and shares to thresholds and extras: the steps of a calibration after the first pass.

Thresholds are searched first, without extras; then the exponent on alpha, the thresholds of single
layers and the extras are chosen in this order, each by the answers' KL at equal skip ratio, and
only where both halves of the samples agree. What is chosen after the thresholds moves the skip
ratio a little and the best thresholds with it, so the targets are hit again at the end, by
thresholds near those of before.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TypeVar

import torch
from torch import Tensor

from modes_fx.calibration.bounded import Bounded, allowance, bounded_search
from modes_fx.calibration.curves import quantile_curves, release_curves
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.fractions import Fractions, Shifted
from modes_fx.calibration.means import Sizes, collect_means
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.options import CalibrationOptions, Candidate
from modes_fx.calibration.pairs import Shares
from modes_fx.calibration.plane import (
    Extras,
    Plane,
    Progress,
    Tau,
    agreed_gain,
    no_progress,
    request_of,
    require_reachable,
    thetas_of,
)
from modes_fx.calibration.refine import refine
from modes_fx.calibration.request import Request
from modes_fx.calibration.search import (
    Found,
    Frontier,
    evaluated,
    search_frontier,
    search_nearby,
    settle,
)
from modes_fx.calibration.sweep import Grid, brute_force, frontier_sweep
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Strength
from modes_fx.policy_means import strength_in_words
from modes_fx.vocabulary import CALIBRATED, ModalityName

Option = TypeVar("Option")

ENOUGH = 0.02
"""A choice has to lower the logarithm of KL by more than this, on both halves of the samples."""


Measured = Mapping[float, Measurement]
"""By target."""


@dataclass(frozen=True)
class Step:
    """One choice that was made or refused, for the report.

    Attributes:
        name: what was chosen.
        options: what there was to choose from, in words, with the fall of log KL on the half of
            the samples where it is less: the mean over the targets, or the least if one got worse.
        chosen: one of them.
    """

    name: str
    options: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a target.

    Attributes:
        target: the skip ratio asked for.
        tau: by modality, before single layers were refined.
        thetas: the thresholds in force, by layer.
        refined: whether they are not those of ``tau``.
        means: what is added for skipped pairs at full strength, by layer; None for nothing.
        measurement: what all of it gives.
        before: what the thresholds gave before there were extras.
    """

    target: float
    tau: Tau
    thetas: Mapping[str, Tensor]
    refined: bool
    means: Mapping[str, Tensor] | None
    measurement: Measurement
    before: Measurement


@dataclass(frozen=True)
class Tuned:
    """The constants that were found, and how.

    Attributes:
        alpha_exponent: chosen.
        kept_mass_exponent: chosen.
        mean_strength: chosen, one or by modality.
        chosen: by target, ascending.
        frontier: the search for thresholds at that exponent.
        bounded: what the bounded search says of each target, where it was asked for.
        steps: the choices, in order.
    """

    alpha_exponent: float
    kept_mass_exponent: float
    mean_strength: Strength
    chosen: Mapping[float, Chosen]
    frontier: Frontier
    bounded: Mapping[float, Bounded] = field(default_factory=dict)
    steps: Sequence[Step] = ()


@dataclass(frozen=True)
class Tuner:
    """Makes the choices of one calibration.

    Attributes:
        evaluator: inside its ``with`` block.
        draft: a policy with normalised alpha and the options, without tau.
        shares: the full model's.
        sizes: of its experts.
        modalities: those to skip in.
        options: how.
    """

    evaluator: Evaluator
    draft: SkipPolicy
    shares: Shares
    sizes: Sizes
    modalities: Sequence[ModalityName]
    options: CalibrationOptions

    def tune(self, targets: Sequence[float], on_progress: Progress = no_progress) -> Tuned:
        """Find thresholds and extras for all targets.

        Raises:
            UnreachableTargetError: the largest thresholds do not skip so much.
        """
        first, *others = self.options.exponents
        plane = self._plane(first)
        frontier, bounded = self._search(plane, targets, lambda done: on_progress(0.6 * done))
        exponent, step = self._choose_exponent(first, others, frontier)
        steps = [step] if others else []
        if exponent != first:
            plane = self._plane(exponent)
            frontier = search_frontier(plane, targets, tolerance=self.options.tolerance)
        on_progress(0.7)
        thresholds = self._refined(exponent, frontier) if self.options.refine_rounds else {}
        on_progress(0.8)
        extras, means, step = self._choose_extras(exponent, frontier, thresholds)
        if len(step.options) > 1:
            steps.append(step)
        on_progress(0.9)
        chosen = {
            target: self._hit(plane, found, thresholds.get(target), extras, means.get(target))
            for target, found in frontier.found.items()
        }
        on_progress(1.0)
        strength = extras.strength(self.modalities)
        beta = extras.kept_mass_exponent
        return Tuned(exponent, beta, strength, chosen, frontier, bounded, steps)

    @property
    def _held_back(self) -> frozenset[int]:
        layout = self.evaluator.reference.layout
        return frozenset(sample for samples, kept in layout if kept for sample in samples)

    def _policy(self, exponent: float) -> SkipPolicy:
        return self.draft.model_copy(update={"alpha_exponent": exponent})

    def _plane(self, exponent: float, extras: Extras | None = None) -> Plane:
        policy = self._policy(exponent)
        quantile = self.options.curves == "quantile"
        curves = (
            quantile_curves(self.shares, policy, self.modalities)
            if quantile
            else release_curves(self.modalities)
        )
        return Plane(self.evaluator, policy, curves, extras)

    def _search(
        self, plane: Plane, targets: Sequence[float], on_progress: Progress
    ) -> tuple[Frontier, dict[float, Bounded]]:
        tolerance, search = self.options.tolerance, self.options.search
        if search == "places" or not plane.has_both_axes:
            return search_frontier(plane, targets, tolerance=tolerance, on_progress=on_progress), {}
        grid = Grid(self.options.size, plane.at)
        found, bounded = {}, {}
        ordered = sorted(set(targets))
        for number, target in enumerate(ordered, start=1):
            require_reachable(target, grid.at((grid.size - 1, grid.size - 1)).skip_ratio)
            if search == "bounded":
                most = allowance(grid, ordered[:number])
                bounded[target] = bounded_search(grid, target, most)
                cell = bounded[target].cell
            else:
                cell = (frontier_sweep if search == "sweep" else brute_force)(grid, target)
            assert cell is not None
            found[target] = settle(plane, target, grid.place(cell), tolerance)
            on_progress(number / len(ordered))
        plane.warn_falls()
        return Frontier(found, evaluated(plane)), bounded

    def _choose_exponent(
        self, first: float, others: Sequence[float], frontier: Frontier
    ) -> tuple[float, Step]:
        """Compare exponents at the fractions of skipped text and vision that were found."""
        gains = {first: 0.0}
        for exponent in others:
            plane = self._plane(exponent)
            gains[exponent] = gain_over(
                agreed_gain(found.measurement, plane.at(found.place), target, self._held_back)
                for target, found in frontier.found.items()
            )
        best = max(gains, key=lambda exponent: gains[exponent])
        chosen = best if gains[best] > ENOUGH else first
        named = {f"{exponent:g}": gain for exponent, gain in gains.items()}
        return chosen, Step("exponent on alpha", named, f"{chosen:g}")

    def _refined(self, exponent: float, frontier: Frontier) -> dict[float, Fractions]:
        policy = self._policy(exponent)
        return {
            target: refine(
                self.evaluator,
                Fractions.of(thetas_of(policy, found.tau), self.shares, self.modalities),
                target,
                rounds=self.options.refine_rounds,
                held_back=self._held_back,
            )
            for target, found in frontier.found.items()
        }

    def _choose_extras(
        self, exponent: float, frontier: Frontier, refined: Mapping[float, Fractions]
    ) -> tuple[Candidate, dict[float, dict[str, Tensor]], Step]:
        """Choose extras, the same for all targets, at the thresholds that were found."""
        policy = self._policy(exponent)
        thetas = {
            target: refined[target].thetas() if target in refined else thetas_of(policy, found.tau)
            for target, found in frontier.found.items()
        }
        candidates = list(dict.fromkeys(c.of(self.modalities) for c in self.options.extras))
        means = {
            target: collect_means(
                self.evaluator, Request.of(of_target), self.sizes, self.evaluator.model.dtype
            )
            for target, of_target in thetas.items()
            if any(candidate.adds_means for candidate in candidates)
        }
        plain = {t: self.evaluator.measure(Request.of(of_t)) for t, of_t in thetas.items()}
        measured = {
            candidate: {
                target: self.evaluator.measure(
                    request_of(of_target, self._extras(candidate, means.get(target)))
                )
                for target, of_target in thetas.items()
            }
            for candidate in candidates
        }
        chosen = unbeaten(candidates, lambda a, b: self._gain(measured[a], measured[b]))
        named = {self._in_words(c): self._gain(plain, of_c) for c, of_c in measured.items()}
        return (
            chosen,
            means if chosen.adds_means else {},
            Step("extras", named, self._in_words(chosen)),
        )

    def _gain(self, before: Measured, after: Measured) -> float:
        return gain_over(
            agreed_gain(before[target], after[target], target, self._held_back) for target in after
        )

    def _hit(
        self,
        plain: Plane,
        found: Found,
        refined: Fractions | None,
        extras: Candidate,
        means: Mapping[str, Tensor] | None,
    ) -> Chosen:
        """Hit the target again with extras on, where KL is least with them."""
        target, tolerance = found.target, self.options.tolerance
        with_extras = self._extras(extras, means)
        if refined is not None:
            shifted = Shifted(self.evaluator, refined, with_extras)
            thetas, measurement = shifted.hit(target, tolerance)
            before = self.evaluator.measure(Request.of(refined.thetas()))
            return Chosen(target, found.tau, thetas, True, means, measurement, before)
        plane = Plane(self.evaluator, plain.policy, plain.curves, with_extras)
        if with_extras == Extras():
            again = settle(plane, target, found.place, tolerance)
        else:
            again = search_nearby(plane, target, found.place, plain, tolerance=tolerance)
        thetas = thetas_of(plain.policy, again.tau)
        return Chosen(target, again.tau, thetas, False, means, again.measurement, found.measurement)

    def _extras(self, chosen: Candidate, means: Mapping[str, Tensor] | None) -> Extras:
        if not chosen.adds_means or means is None:
            return Extras(chosen.kept_mass_exponent)
        strength = chosen.strength(self.modalities)
        return Extras(chosen.kept_mass_exponent, strength, self.evaluator.add_means(means))

    def _in_words(self, candidate: Candidate) -> str:
        strength = strength_in_words(candidate.strength(self.modalities))
        return f"renormalisation {candidate.kept_mass_exponent:g}, means {strength}"


def unbeaten(candidates: Sequence[Option], gain: Callable[[Option, Option], float]) -> Option:
    """Return the candidate that no later one beats, likeliest candidates first.

    Of many candidates that are measured on few samples the best is often only the luckiest, so each
    has to be better by more than ``ENOUGH`` than the one chosen so far.

    Args:
        candidates: the first is what there is without a choice.
        gain: of the second over the first.
    """
    chosen, *others = candidates
    for other in others:
        if gain(chosen, other) > ENOUGH:
            chosen = other
    return chosen


def gain_over(gains: Iterable[float]) -> float:
    """Return the mean gain over the targets, or the least where a target gets worse.

    The choice is the same for all targets: a large gain at one must not hide a harm at another.
    """
    of_targets = list(gains)
    least = min(of_targets)
    return least if least < -ENOUGH else mean(of_targets)


def with_constants(draft: SkipPolicy, tuned: Tuned) -> dict[str, object]:
    """Return the fields of a policy that a tuning decides, by name."""
    chosen = tuned.chosen
    fields: dict[str, object] = {
        "tau": {target: dict(of_target.tau) for target, of_target in chosen.items()},
        "alpha_exponent": tuned.alpha_exponent,
        "kept_mass_exponent": tuned.kept_mass_exponent,
        "mean_strength": tuned.mean_strength,
    }
    refined = {
        target: _layer_tau(draft, tuned.alpha_exponent, of_target)
        for target, of_target in chosen.items()
        if of_target.refined
    }
    if refined:
        fields["layer_tau"] = refined
    return fields


def _layer_tau(
    draft: SkipPolicy, exponent: float, chosen: Chosen
) -> dict[str, dict[ModalityName, float]]:
    """Return the tau of each layer that give its thresholds."""
    found: dict[str, dict[ModalityName, float]] = {}
    for path, theta in chosen.thetas.items():
        for name, alpha in draft.alpha[path].items():
            if name in chosen.tau and alpha > 0:
                value = float(theta[CALIBRATED[name]])
                tau = 0.0 if value == -torch.inf else value * alpha**exponent
                found.setdefault(path, {})[name] = tau
    return found
