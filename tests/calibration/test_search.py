"""The frontier sweep: it hits the targets and takes the place of least KL."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from modes_fx import SkipPolicy
from modes_fx.calibration import Request, UnreachableTargetError
from modes_fx.calibration.alpha import measure_alpha, normalise_alpha
from modes_fx.calibration.curves import quantile_curves
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.search import search_frontier, thetas_of
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


def test_the_place_of_least_kl_on_the_frontier_is_found() -> None:
    surface = Surface(lambda u, v: 0.6 * u + 0.4 * v, lambda u, v: u**2 + v**4)
    frontier = search_frontier(surface, POLICY, [0.5], LINEAR, size=21)
    found = frontier.found[0.5]
    on_frontier = [(u / 1000, (0.5 - 0.6 * u / 1000) / 0.4) for u in range(167, 834)]
    least = min(u**2 + v**4 for u, v in on_frontier)
    assert 0.5 <= found.measurement.skip_ratio <= 0.505
    assert found.measurement.kl == pytest.approx(least, rel=0.05)
    assert found.measurement.place == pytest.approx((found.tau["text"], found.tau["vision"]))
    assert surface.passes == len(frontier.evaluated) < 2 * 21


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        pytest.param(lambda u, v: u, (0.25, 1.0), id="vision costs nothing"),
        pytest.param(lambda u, v: v, (2 / 3, 0.0), id="text costs nothing"),
    ],
)
def test_the_ends_of_the_frontier_belong_to_it(kl, expected) -> None:
    surface = Surface(lambda u, v: 0.6 * u + 0.25 * v, kl)
    found = search_frontier(surface, POLICY, [0.4], LINEAR).found[0.4]
    assert found.measurement.place == pytest.approx(expected, abs=0.01)


def test_targets_are_found_one_by_one_and_each_tau_is_measured_once() -> None:
    surface = Surface(lambda u, v: (u + v) / 2, lambda u, v: u + v**2)
    progress = []
    frontier = search_frontier(
        surface, POLICY, [0.88, 0.5, 0.5], LINEAR, on_progress=progress.append
    )
    assert list(frontier.found) == [0.5, 0.88]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    taus = [tuple(tau.values()) for tau, _ in frontier.evaluated]
    assert len(set(taus)) == len(taus)


def test_one_modality_has_one_threshold_to_find() -> None:
    surface = Surface(lambda u, v: 0.9 * v, lambda u, v: v)
    frontier = search_frontier(surface, POLICY, [0.7], {"vision": lambda v: v})
    assert frontier.found[0.7].tau == pytest.approx({"vision": 0.7 / 0.9}, abs=0.01)
    assert surface.passes <= 4


def test_further_modalities_move_together() -> None:
    curves = {**LINEAR, "audio": lambda v: 3 * v}
    surface = Surface(lambda u, v: 0.6 * u + 0.4 * v, lambda u, v: u + v)
    tau = search_frontier(surface, POLICY, [0.5], curves).found[0.5].tau
    assert tau["audio"] == 3 * tau["vision"]


def test_an_unreachable_target_says_by_how_much_and_what_can_be_had() -> None:
    surface = Surface(lambda u, v: 0.5 * u + 0.3 * v, lambda u, v: u + v)
    with pytest.raises(UnreachableTargetError, match=r"0.88 .* 80.0% .* 8.0% too few.*most 0.8"):
        search_frontier(surface, POLICY, [0.5, 0.88], LINEAR)


def test_a_ratio_that_moves_in_steps_is_said_so() -> None:
    surface = Surface(lambda u, v: round(3 * (u + v)) / 6, lambda u, v: u + v)
    with pytest.warns(UserWarning, match=r"above the target 0.75 is 0.8333: many pairs"):
        search_frontier(surface, POLICY, [0.75], LINEAR)


def test_a_ratio_that_falls_where_thresholds_grow_is_said_so() -> None:
    def skip(u: float, v: float) -> float:
        return 0.5 * u + 0.5 * v + 0.1 * math.sin(20 * v)

    with pytest.warns(UserWarning, match="larger thresholds skipped less"):
        search_frontier(Surface(skip, lambda u, v: u + v), POLICY, [0.5], LINEAR)


def test_a_monotone_surface_gives_no_warning() -> None:
    surface = Surface(lambda u, v: (u + v) / 2, lambda u, v: u * v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search_frontier(surface, POLICY, [0.5, 0.75], LINEAR)


def test_thresholds_are_the_policys() -> None:
    policy = SkipPolicy(alpha={"layer": {"text": 0.5, "vision": 0.0}}, tau={0.5: {"text": 0.1}})
    theta = thetas_of(policy, {"text": 0.1, "vision": 0.1})["layer"]
    assert torch.equal(theta[:2], torch.tensor([0.2, torch.inf]))
    assert torch.equal(theta[0], policy.theta("layer", 0.5)[0])


@pytest.fixture
def calibrated(model, shares, evaluator):
    modalities = ["text", "vision"]
    alpha = normalise_alpha(measure_alpha(evaluator, modalities))
    policy = keep_all_policy(model).model_copy(update={"alpha": alpha})
    return policy, quantile_curves(shares, policy, modalities)


def test_the_targets_are_hit_on_a_model(evaluator, calibrated) -> None:
    policy, curves = calibrated
    frontier = search_frontier(evaluator, policy, [0.5, 0.75], curves, size=4)
    for target, found in frontier.found.items():
        assert target <= found.measurement.skip_ratio <= target + 0.01
        again = evaluator.measure(Request.of(thetas_of(policy, found.tau)))
        assert again.kl == found.measurement.kl


def test_kl_and_skip_ratio_grow_with_tau(evaluator, calibrated) -> None:
    policy, curves = calibrated
    steps = [0.0, 0.2, 0.5, 0.8, 1.0]
    taus = [{name: curve(step) for name, curve in curves.items()} for step in steps]
    measured = [evaluator.measure(Request.of(thetas_of(policy, tau))) for tau in taus]
    assert [m.skip_ratio for m in measured] == pytest.approx(steps, abs=0.1)
    kls = [m.kl for m in measured]
    assert kls[0] == pytest.approx(0, abs=1e-9)
    assert kls == sorted(kls)
