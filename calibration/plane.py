"""The plane that a search for tau moves in, and what was measured on it.

A place (u, v) in [0, 1] x [0, 1] says how far text (u) and the other modalities (v) have gone along
their curves from skipping nothing to skipping all. Skip ratio and KL grow with u and with v, so the
places that just reach a target form a falling line, the frontier, and the best place is on it.
"""

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modes_fx.calibration.curves import Curve
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.reach import reach
from modes_fx.calibration.request import Request
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Strength, target_key
from modes_fx.vocabulary import ModalityName

Place = tuple[float, float]
Tau = dict[ModalityName, float]

SKIP_NOISE = 1e-3
"""Skip ratios that fall by less than this where they should grow are not worth a warning."""

KL_PER_SKIP = 15.0
"""About how much log KL grows with the skip ratio: to compare places that skip a little unequally.
Measured on small models; only places within a few points of each other are compared by it."""


class UnreachableTargetError(ValueError):
    """No thresholds reach a skip target; the message says which ratio can be reached."""


@dataclass(frozen=True)
class Extras:
    """What a request has besides thresholds; see ``Request``."""

    kept_mass_exponent: float = 0.0
    mean_strength: Strength = 0.0
    means: str | None = None


class Plane:
    """Thresholds by place, for one alpha exponent, and their measurements.

    Attributes:
        policy: holds alpha and the options; its tau are not used.
        curves: for each modality to skip in, tau as a function of [0, 1].
        measured: by place, in order.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        policy: SkipPolicy,
        curves: Mapping[ModalityName, Curve],
        extras: Extras | None = None,
    ) -> None:
        """Begin with nothing measured."""
        self.policy, self.curves = policy, curves
        self.measured: dict[Place, Measurement] = {}
        self._evaluator = evaluator
        self._extras = extras or Extras()
        self._axis_of = {name: int(name != "text" or len(curves) == 1) for name in curves}

    @property
    def has_both_axes(self) -> bool:
        """Whether there is text and something else; if not, only v matters."""
        return 0 in self._axis_of.values()

    def tau(self, place: Place) -> Tau:
        """The tau of a place, by modality."""
        return {name: curve(place[self._axis_of[name]]) for name, curve in self.curves.items()}

    def request(self, place: Place) -> Request:
        """What is measured at a place."""
        return request_of(thetas_of(self.policy, self.tau(place)), self._extras)

    def at(self, place: Place) -> Measurement:
        """Measure a place, once."""
        if place not in self.measured:
            self.measured[place] = self._evaluator.measure(self.request(place))
        return self.measured[place]

    def skippable(self, axis: int) -> float:
        """How much of all pairs can be skipped along an axis: about the skip ratio's slope."""
        return self.at((1.0 - axis, float(axis))).skip_ratio

    def onto(self, target: float, place: Place, axis: int, tolerance: float) -> Place:
        """Move a place along an axis onto the frontier of a target."""

        def ratio(s: float) -> float:
            return self.at(moved(place, axis, s)).skip_ratio

        s = reach(ratio, target, tolerance, guess=place[axis], slope=self.skippable(axis))
        return moved(place, axis, s)

    def towards(self, target: float, place: Place, tolerance: float) -> Place:
        """Move a place onto the frontier, text and the rest by the same part of their way."""
        here = self.at(place).skip_ratio
        if target <= here <= target + tolerance:
            return place
        start, end = (place, (1.0, 1.0)) if here < target else ((0.0, 0.0), place)

        def along(k: float) -> Place:
            return between(start, end, k)

        low, high = self.at(start).skip_ratio, self.at(end).skip_ratio
        guess = (target + tolerance / 2 - low) / max(high - low, 1e-6)
        k = reach(
            lambda k: self.at(along(k)).skip_ratio,
            target,
            tolerance,
            guess=guess,
            slope=max(high - low, 1e-6),
        )
        return along(k)

    def warn_falls(self) -> None:
        """Say where the measurements contradict what searches rely on."""
        falls = [
            smaller.skip_ratio - larger.skip_ratio
            for a, smaller in self.measured.items()
            for b, larger in self.measured.items()
            if a != b and a[0] <= b[0] and a[1] <= b[1]
        ]
        wrong = [fall for fall in falls if fall > SKIP_NOISE]
        if wrong:
            warnings.warn(
                f"larger thresholds skipped less in {len(wrong)} of {len(falls)} comparisons, by "
                f"up to {max(wrong):.2%} of the pairs: skipping changes what later layers see. The "
                "search assumes the opposite and may have missed better thresholds",
                stacklevel=3,
            )


def request_of(thetas: Mapping[str, Tensor], extras: Extras) -> Request:
    """Return the request for thresholds with extras."""
    return Request.of(
        thetas,
        kept_mass_exponent=extras.kept_mass_exponent,
        mean_strength=extras.mean_strength,
        means=extras.means,
    )


def thetas_of(policy: SkipPolicy, tau: Mapping[ModalityName, float]) -> dict[str, Tensor]:
    """Return every layer's thresholds for some tau, as the policy computes them."""
    trial = policy.model_copy(update={"tau": {target_key(0): dict(tau)}, "layer_tau": None})
    return {path: trial.theta(path, 0) for path in policy.alpha}


def corrected(measurement: Measurement, target: float) -> float:
    """Return log KL as it would be at the target's skip ratio, about."""
    return log_kl(measurement.kl) - KL_PER_SKIP * (measurement.skip_ratio - target)


def agreed_gain(
    before: Measurement, after: Measurement, target: float, held_back: Collection[int] = ()
) -> float:
    """Return by how much corrected log KL falls, on the half of the samples where it falls less.

    A step that helps by chance on one half has to help on the other as well.

    Args:
        before: without the step.
        after: with it.
        target: the skip ratio.
        held_back: the samples of one half; where they are none or all, halves are drawn.
    """
    skip = KL_PER_SKIP * (after.skip_ratio - before.skip_ratio)
    gains = [
        log_kl(kl_of(before, half)) - log_kl(kl_of(after, half)) + skip
        for half in halves(before, held_back)
    ]
    return min(gains)


def halves(measurement: Measurement, held_back: Collection[int] = ()) -> tuple[Tensor, Tensor]:
    """Return two halves of the samples, as places in the measurement; equal for one sample."""
    samples = measurement.difference.samples
    kept = torch.tensor([sample in held_back for sample in samples])
    if kept.any() and not kept.all():
        return (~kept).nonzero()[:, 0], kept.nonzero()[:, 0]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    half = len(samples) // 2
    return (order[:half], order[half:]) if half else (order, order)


def kl_of(measurement: Measurement, samples: Tensor) -> float:
    """Return the KL of some of the samples, mean over their answer tokens."""
    difference = measurement.difference
    return float(difference.kl_sums[samples].sum() / difference.tokens[samples].sum())


def log_kl(kl: float) -> float:
    """Return the logarithm of a KL; rounding can make that of no change negative."""
    return math.log(max(kl, 1e-12))


def moved(place: Place, axis: int, to: float) -> Place:
    """Return a place with one coordinate changed."""
    return (place[0], to) if axis else (to, place[1])


def between(a: Place, b: Place, part: float) -> Place:
    """Return the place a part of the way from a to b."""
    return (a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1]))


def require_reachable(target: float, most: float) -> None:
    """Check that a target is no more than what the largest thresholds skip.

    Raises:
        UnreachableTargetError: it is; says by how much, and what can be asked for.
    """
    if most < target:
        raise UnreachableTargetError(
            f"the target {target} cannot be reached: the largest thresholds of the search skip "
            f"{most:.1%} of the pairs, {target - most:.1%} too few. Ask for at most "
            f"{math.floor(most * 1000) / 1000}, or search along other curves"
        )


Progress = Callable[[float], None]


def no_progress(done: float) -> None:
    """Show nothing."""
