"""The search from coarse to fine: it hits the targets and takes the place of least KL."""

import math
import warnings
from types import SimpleNamespace

import pytest

from modes_fx import SkipPolicy
from modes_fx.calibration import UnreachableTargetError
from modes_fx.calibration.plane import Plane
from modes_fx.calibration.search import search_frontier, search_nearby, settle
from modes_fx.vocabulary import Modality

POLICY = SkipPolicy(alpha={"layer": {"text": 1.0, "vision": 1.0, "audio": 1.0}}, tau={})
LINEAR = {"text": lambda u: u, "vision": lambda v: v}


class Surface:
    """Stands in for an evaluator: skip ratio and KL are given functions of the two thresholds."""

    def __init__(self, skip, kl) -> None:
        self.skip, self.kl, self.passes = skip, kl, 0

    def measure(self, request) -> SimpleNamespace:
        self.passes += 1
        theta = request.theta("layer").clamp(min=0).double()
        u, v = float(theta[Modality.TEXT]), float(theta[Modality.VISION])
        return SimpleNamespace(skip_ratio=self.skip(u, v), kl=self.kl(u, v), place=(u, v))


def search(surface: Surface, targets, curves=LINEAR, **options):
    return search_frontier(Plane(surface, POLICY, curves), targets, **options)


def costly(u: float, v: float) -> float:
    """Grows with the skip ratio as fast as KL does."""
    return math.exp(9 * u) + math.exp(6 * v)


def test_the_place_of_least_kl_on_the_frontier_is_found() -> None:
    surface = Surface(lambda u, v: 0.6 * u + 0.4 * v, costly)
    found = search(surface, [0.5]).found[0.5]
    on_frontier = [(u / 1000, (0.5 - 0.6 * u / 1000) / 0.4) for u in range(167, 834)]
    least = min(costly(u, v) for u, v in on_frontier)
    assert 0.5 <= found.measurement.skip_ratio <= 0.505
    assert found.measurement.kl <= 1.1 * least
    assert found.measurement.place == pytest.approx((found.tau["text"], found.tau["vision"]))
    assert surface.passes <= 16


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        pytest.param(lambda u, v: math.exp(40 * u), (0.25, 1.0), id="vision costs nothing"),
        pytest.param(lambda u, v: math.exp(40 * v), (2 / 3, 0.0), id="text costs nothing"),
    ],
)
def test_the_ends_of_the_frontier_belong_to_it(kl, expected) -> None:
    surface = Surface(lambda u, v: 0.6 * u + 0.25 * v, kl)
    found = search(surface, [0.4]).found[0.4]
    assert found.measurement.place == pytest.approx(expected, abs=0.02)


def test_slopes_that_are_off_are_made_up_for() -> None:
    surface = Surface(lambda u, v: (0.6 * u + 0.4 * v) ** 1.3, costly)
    found = search(surface, [0.5], tolerance=0.002).found[0.5]
    assert 0.5 <= found.measurement.skip_ratio <= 0.502


def test_the_least_kl_is_found_again_where_it_has_moved() -> None:
    def linear(u: float, v: float) -> float:
        return 0.6 * u + 0.4 * v

    before = Plane(Surface(linear, costly), POLICY, LINEAR)
    place = search_frontier(before, [0.5], tolerance=0.002).found[0.5].place
    # Skipping text has become cheaper; every place skips a little more.
    changed = Surface(
        lambda u, v: linear(u, v) + 0.004, lambda u, v: math.exp(7 * u) + math.exp(8 * v)
    )
    plane = Plane(changed, POLICY, LINEAR)
    found = search_nearby(plane, 0.5, place, before, tolerance=0.002)
    kept = settle(Plane(changed, POLICY, LINEAR), 0.5, place, 0.002)
    least = search_frontier(Plane(changed, POLICY, LINEAR), [0.5], tolerance=0.002).found[0.5]
    assert 0.5 <= found.measurement.skip_ratio <= 0.502
    assert found.measurement.kl < 0.9 * kept.measurement.kl
    assert found.measurement.kl <= 1.1 * least.measurement.kl
    assert len(plane.measured) <= 10


def test_targets_share_measurements_and_each_place_is_measured_once() -> None:
    surface = Surface(lambda u, v: (u + v) / 2, costly)
    progress = []
    frontier = search(surface, [0.88, 0.5, 0.5], on_progress=progress.append)
    assert list(frontier.found) == [0.5, 0.88]
    assert progress == [0.5, 1.0]
    taus = [tuple(tau.values()) for tau, _ in frontier.evaluated]
    assert len(set(taus)) == len(taus) == surface.passes


def test_one_modality_has_one_threshold_to_find() -> None:
    surface = Surface(lambda u, v: 0.9 * v, lambda u, v: v)
    frontier = search(surface, [0.7], {"vision": lambda v: v})
    assert frontier.found[0.7].tau == pytest.approx({"vision": 0.7 / 0.9}, abs=0.01)
    assert surface.passes <= 4


def test_further_modalities_move_together() -> None:
    curves = {**LINEAR, "audio": lambda v: 3 * v}
    surface = Surface(lambda u, v: 0.6 * u + 0.4 * v, costly)
    tau = search(surface, [0.5], curves).found[0.5].tau
    assert tau["audio"] == 3 * tau["vision"]


def test_an_unreachable_target_says_by_how_much_and_what_can_be_had() -> None:
    surface = Surface(lambda u, v: 0.5 * u + 0.3 * v, costly)
    with pytest.raises(UnreachableTargetError, match=r"0.88 .* 80.0% .* 8.0% too few.*most 0.8"):
        search(surface, [0.5, 0.88])


def test_a_ratio_that_moves_in_steps_is_said_so() -> None:
    surface = Surface(lambda u, v: round(3 * (u + v)) / 6, costly)
    with pytest.warns(UserWarning, match=r"above the target 0.75 is 0.8333: many pairs"):
        search(surface, [0.75])


def test_a_ratio_that_falls_where_thresholds_grow_is_said_so() -> None:
    plane = Plane(Surface(lambda u, v: 0.5 * u + 0.1 * math.sin(5 * v), costly), POLICY, LINEAR)
    for place in ((0.0, 0.3), (0.0, 0.6), (0.5, 0.6)):
        plane.at(place)
    with pytest.warns(UserWarning, match="larger thresholds skipped less in 1 of 3 comparisons"):
        plane.warn_falls()


def test_a_monotone_surface_gives_no_warning() -> None:
    surface = Surface(lambda u, v: (u + v) / 2, costly)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(surface, [0.5, 0.75])
