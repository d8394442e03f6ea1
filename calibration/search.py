"""tau: the thresholds of least KL that reach a skip ratio, searched from coarse to fine.

A few places along the whole frontier are measured once each, without hitting the target exactly:
places that skip a little unequally can be compared, because KL grows with the skip ratio at a known
rate. Then the steps around the best place are halved, and in the end the target is hit exactly.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.plane import (
    Place,
    Plane,
    Progress,
    Tau,
    corrected,
    no_progress,
    require_reachable,
)

PLACES = 6
HALVINGS = 2


@dataclass(frozen=True)
class Found:
    """The thresholds that were chosen for a target.

    Attributes:
        target: the skip ratio asked for.
        tau: by modality.
        measurement: what they gave.
        place: on the plane of the search.
    """

    target: float
    tau: Tau
    measurement: Measurement
    place: Place = (0.0, 0.0)


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
    plane: Plane,
    targets: Sequence[float],
    *,
    tolerance: float = 0.005,
    on_progress: Progress = no_progress,
) -> Frontier:
    """Find, for each target, the tau of least KL whose skip ratio reaches it.

    Args:
        plane: to search on; remembers what was measured, for all targets.
        targets: skip ratios.
        tolerance: by how much the skip ratio may exceed the target.
        on_progress: called with the share of the search that is done.

    Raises:
        UnreachableTargetError: the largest thresholds do not skip so much.
    """
    found = {}
    ordered = sorted(set(targets))
    for number, target in enumerate(ordered, start=1):
        require_reachable(target, plane.at((1.0, 1.0)).skip_ratio)
        found[target] = settle(plane, target, _best_place(plane, target), tolerance)
        on_progress(number / len(ordered))
    plane.warn_falls()
    return Frontier(found, evaluated(plane))


def search_nearby(
    plane: Plane, target: float, place: Place, before: Plane, *, tolerance: float = 0.005
) -> Found:
    """Find the tau of least KL again, where something besides thresholds has changed.

    What is added for skipped pairs of one kind lets more of them be skipped for the same KL, so the
    best place lies elsewhere on the frontier, but not far.

    Args:
        plane: to search on.
        target: the skip ratio.
        place: the best one before the change.
        before: the plane that it was found on, whose slopes are taken for this one's.
        tolerance: by how much the skip ratio may exceed the target.
    """
    if not plane.has_both_axes:
        return settle(plane, target, place, tolerance)
    text, rest = before.skippable(0), before.skippable(1)
    drift = plane.at(place).skip_ratio - place[0] * text - place[1] * rest
    ends = _ends(target, text, rest)
    by_u = {place[0]: place[1]}
    step = (ends[1] - ends[0]) / (PLACES - 1)
    for _ in range(HALVINGS + 1):
        step /= 2
        _try_beside(plane, target, by_u, step, ends, lambda u: (target - u * text - drift) / rest)
    return settle(plane, target, _least(plane, target, by_u), tolerance)


def settle(plane: Plane, target: float, place: Place, tolerance: float) -> Found:
    """Hit a target exactly from a place near its frontier; warns where the ratio jumps over it."""
    on_frontier = plane.towards(target, place, tolerance)
    reached = plane.at(on_frontier).skip_ratio
    if reached > target + tolerance:
        warnings.warn(
            f"the nearest skip ratio above the target {target} is {reached:.4f}: many pairs "
            "have the same share, so the ratio moves in steps. Use more samples",
            stacklevel=3,
        )
    return Found(target, plane.tau(on_frontier), plane.at(on_frontier), on_frontier)


def evaluated(plane: Plane) -> list[tuple[Tau, Measurement]]:
    """Return everything that was measured on a plane, in order."""
    return [(plane.tau(place), measurement) for place, measurement in plane.measured.items()]


def _best_place(plane: Plane, target: float) -> Place:
    if not plane.has_both_axes:
        return (0.0, min(target / plane.skippable(1), 1.0))
    text, rest = plane.skippable(0), plane.skippable(1)
    ends = _ends(target, text, rest)
    step = (ends[1] - ends[0]) / (PLACES - 1)
    by_u = {ends[0] + k * step: 0.0 for k in range(PLACES)}
    drift = 0.0
    for u in by_u:
        place, drift = _near_frontier(plane, target, u, drift)
        by_u[u] = place[1]
    for _ in range(HALVINGS):
        step /= 2
        _try_beside(plane, target, by_u, step, ends, lambda u: (target - u * text - drift) / rest)
    return _least(plane, target, by_u)


def _ends(target: float, text: float, rest: float) -> tuple[float, float]:
    """Return the fractions of skipped text between which a frontier lies."""
    return max(target - rest, 0.0) / text, min(target / text, 1.0)


def _try_beside(
    plane: Plane,
    target: float,
    by_u: dict[float, float],
    step: float,
    ends: tuple[float, float],
    height: Callable[[float], float],
) -> None:
    """Add the places on both sides of the best one so far."""
    best, _ = _least(plane, target, by_u)
    for u in (best - step, best + step):
        if ends[0] <= u <= ends[1] and u not in by_u:
            by_u[u] = min(max(height(u), 0.0), 1.0)


def _least(plane: Plane, target: float, by_u: Mapping[float, float]) -> Place:
    return min(by_u.items(), key=lambda place: corrected(plane.at(place), target))


def _near_frontier(plane: Plane, target: float, u: float, drift: float) -> tuple[Place, float]:
    """Return the place of the frontier at u as far as slopes tell, and by how much they are off.

    Skipping changes what later layers see, so a place skips more or less than its slopes say; the
    neighbour's error is a good guess at the next one's.
    """
    text, rest = plane.skippable(0), plane.skippable(1)
    v = min(max((target - u * text - drift) / rest, 0.0), 1.0)
    return (u, v), plane.at((u, v)).skip_ratio - u * text - v * rest
