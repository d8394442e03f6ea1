"""tau: the frontier sweep, which finds the thresholds of least KL that reach a skip ratio.

A place (u, v) in [0, 1] x [0, 1] says how far text (u) and the other modalities (v) have gone along
their curves from skipping nothing to skipping all. Skip ratio and KL grow with u and with v, so the
places that just reach a target form a falling line, the frontier, and the best place is on it. The
sweep goes along it: for each u of a grid, v descends to where the target is just reached. Only u is
on a grid, so that all places skip equally much and their KLs can be compared.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from modes_fx.calibration.curves import Curve
from modes_fx.calibration.evaluator import Evaluator, Measurement
from modes_fx.calibration.reach import reach
from modes_fx.calibration.request import Request
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import target_key
from modes_fx.vocabulary import ModalityName

Place = tuple[float, float]
Tau = dict[ModalityName, float]

SKIP_NOISE = 1e-3
"""Skip ratios that fall by less than this where they should grow are not worth a warning."""


class UnreachableTargetError(ValueError):
    """No thresholds reach a skip target; the message says which ratio can be reached."""


@dataclass(frozen=True)
class Found:
    """The thresholds that were chosen for a target.

    Attributes:
        target: the skip ratio asked for.
        tau: by modality.
        measurement: what they gave.
    """

    target: float
    tau: Tau
    measurement: Measurement


@dataclass(frozen=True)
class Frontier:
    """What a search found, and all that it measured on the way.

    Attributes:
        found: by target, ascending.
        evaluated: every measured (tau, measurement), in order.
    """

    found: Mapping[float, Found]
    evaluated: Sequence[tuple[Tau, Measurement]]


def search_frontier(
    evaluator: Evaluator,
    policy: SkipPolicy,
    targets: Iterable[float],
    curves: Mapping[ModalityName, Curve],
    *,
    size: int = 11,
    tolerance: float = 0.005,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Frontier:
    """Find, for each target, the tau of least KL whose skip ratio reaches it.

    Args:
        evaluator: inside its ``with`` block.
        policy: holds alpha and the options; its tau are not used.
        targets: skip ratios.
        curves: for each modality to skip in, tau as a function of [0, 1].
        size: how many places of each target's frontier are measured, before the two halfway to the
            neighbours of the best one.
        tolerance: by how much the skip ratio may exceed the target.
        on_progress: called with the share of the search that is done.

    Raises:
        UnreachableTargetError: the largest thresholds do not skip so much.
    """
    ordered = sorted(set(targets))
    sweep = _Sweep(evaluator, policy, curves, tolerance)
    found = {}
    for number, target in enumerate(ordered):
        places: list[Place] = []
        for place in sweep.frontier(target, size):
            places.append(place)
            on_progress((number + len(places) / (size + 2)) / len(ordered))
        places += sweep.refine(target, places)
        best = min(places, key=lambda place: sweep.at(place).kl)
        found[target] = Found(target, sweep.tau(best), sweep.at(best))
        _check_overshoot(found[target], tolerance)
        on_progress((number + 1) / len(ordered))
    _check_monotone(sweep.measured)
    evaluated = [(dict(zip(curves, tau, strict=True)), m) for tau, m in sweep.measured.items()]
    return Frontier(found, evaluated)


def thetas_of(policy: SkipPolicy, tau: Mapping[ModalityName, float]) -> dict[str, Tensor]:
    """Return every layer's thresholds for some tau, as the policy computes them."""
    trial = policy.model_copy(update={"tau": {target_key(0): dict(tau)}})
    return {path: trial.theta(path, 0) for path in policy.alpha}


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


class _Sweep:
    """The tau that were measured (in the order of ``curves``), and the walk along each frontier."""

    def __init__(
        self,
        evaluator: Evaluator,
        policy: SkipPolicy,
        curves: Mapping[ModalityName, Curve],
        tolerance: float,
    ) -> None:
        self.measured: dict[tuple[float, ...], Measurement] = {}
        self._evaluator = evaluator
        self._policy = policy
        self._curves = curves
        self._tolerance = tolerance
        self._axis_of = {name: int(name != "text" or len(curves) == 1) for name in curves}

    def tau(self, place: Place) -> Tau:
        """The tau of a place, by modality."""
        return {name: curve(place[self._axis_of[name]]) for name, curve in self._curves.items()}

    def at(self, place: Place) -> Measurement:
        """Measure a place, once."""
        tau = self.tau(place)
        key = tuple(tau.values())
        if key not in self.measured:
            self.measured[key] = self._evaluator.measure(Request.of(thetas_of(self._policy, tau)))
        return self.measured[key]

    def frontier(self, target: float, size: int) -> Iterator[Place]:
        """Yield places along a target's frontier, both ends first.

        Raises:
            UnreachableTargetError: skipping all there is to skip misses the target.
        """
        require_reachable(target, self.at((1.0, 1.0)).skip_ratio)
        start = self._end(target, (0.0, 1.0))
        yield start
        if 0 not in self._axis_of.values():
            return
        end = self._end(target, (1.0, 0.0))
        yield end
        for k in range(1, size - 1):
            yield self._onto(target, _between(start, end, k / (size - 1)), axis=1)

    def refine(self, target: float, places: Iterable[Place]) -> list[Place]:
        """Return the places of the frontier halfway to the neighbours of the best one."""
        ordered = sorted(places)
        best = min(range(len(ordered)), key=lambda k: self.at(ordered[k]).kl)
        around = ordered[max(best - 1, 0) : best + 2]
        return [self._onto(target, _between(a, b, 0.5), axis=1) for a, b in pairwise(around)]

    def _end(self, target: float, corner: Place) -> Place:
        """The end of the frontier on the two sides of the square that meet in a corner."""
        axis = corner.index(1.0 if self.at(corner).skip_ratio >= target else 0.0)
        other = 1 - axis
        rest = target - corner[other] * self._skippable(other)
        return self._onto(target, _moved(corner, axis, rest / self._skippable(axis)), axis)

    def _onto(self, target: float, place: Place, axis: int) -> Place:
        """Move a place along an axis onto the frontier."""

        def ratio(s: float) -> float:
            return self.at(_moved(place, axis, s)).skip_ratio

        slope = self._skippable(axis)
        s = reach(ratio, target, self._tolerance, guess=place[axis], slope=slope)
        return _moved(place, axis, s)

    def _skippable(self, axis: int) -> float:
        """How much of all pairs can be skipped along an axis: about the skip ratio's slope."""
        return self.at((1.0 - axis, float(axis))).skip_ratio


def _moved(place: Place, axis: int, to: float) -> Place:
    return (place[0], to) if axis else (to, place[1])


def _between(a: Place, b: Place, part: float) -> Place:
    return (a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1]))


def _check_overshoot(found: Found, tolerance: float) -> None:
    reached = found.measurement.skip_ratio
    if reached > found.target + tolerance:
        warnings.warn(
            f"the nearest skip ratio above the target {found.target} is {reached:.4f}: many pairs "
            "have the same share, so the ratio moves in steps. Use more samples",
            stacklevel=3,
        )


def _check_monotone(measured: Mapping[tuple[float, ...], Measurement]) -> None:
    """Say where the measurements contradict what the sweep relies on."""
    falls = [
        smaller.skip_ratio - larger.skip_ratio
        for a, smaller in measured.items()
        for b, larger in measured.items()
        if a != b and all(low <= high for low, high in zip(a, b, strict=True))
    ]
    wrong = [fall for fall in falls if fall > SKIP_NOISE]
    if wrong:
        warnings.warn(
            f"larger thresholds skipped less in {len(wrong)} of {len(falls)} comparisons, by up to "
            f"{max(wrong):.2%} of the pairs: skipping changes what later layers see. The search "
            "assumes the opposite and may have missed better thresholds",
            stacklevel=3,
        )
