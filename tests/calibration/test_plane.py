"""Places, their thresholds, and when a step counts as better."""

from types import SimpleNamespace

import pytest
import torch

from modes_fx import SkipPolicy
from modes_fx.calibration.alpha import measure_alpha, normalise_alpha
from modes_fx.calibration.curves import quantile_curves
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.plane import KL_PER_SKIP, Plane, agreed_gain, halves, thetas_of
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.search import search_frontier
from modes_fx.calibration.survey import Survey


def test_thresholds_are_the_policys() -> None:
    policy = SkipPolicy(alpha={"layer": {"text": 0.5, "vision": 0.0}}, tau={0.5: {"text": 0.1}})
    theta = thetas_of(policy, {"text": 0.1, "vision": 0.1})["layer"]
    assert torch.equal(theta[:2], torch.tensor([0.2, torch.inf]))
    assert torch.equal(theta[0], policy.theta("layer", 0.5)[0])


def measurement(kl_sums: list[float], skip_ratio: float = 0.5) -> SimpleNamespace:
    sums = torch.tensor(kl_sums, dtype=torch.float64)
    difference = SimpleNamespace(
        samples=range(len(sums)), kl_sums=sums, tokens=torch.ones(len(sums))
    )
    return SimpleNamespace(difference=difference, skip_ratio=skip_ratio)


def test_a_step_that_helps_one_half_only_is_no_gain() -> None:
    before = measurement([1.0] * 8)
    first, second = halves(before)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(8))
    helped = torch.ones(8, dtype=torch.float64)
    helped[first] = 0.1
    assert agreed_gain(before, measurement(helped.tolist()), 0.5) == pytest.approx(0)
    assert agreed_gain(before, measurement([0.5] * 8), 0.5) == pytest.approx(0.693, abs=1e-3)


def test_samples_that_are_held_back_are_one_half() -> None:
    before = measurement([1.0] * 6)
    first, second = halves(before, {1, 4})
    assert (first.tolist(), second.tolist()) == ([0, 2, 3, 5], [1, 4])
    worse_there = measurement([0.1, 2.0, 0.1, 0.1, 2.0, 0.1])
    assert agreed_gain(before, worse_there, 0.5, {1, 4}) < 0


def test_skipping_more_counts_as_better_at_equal_kl() -> None:
    gain = agreed_gain(measurement([1.0] * 4), measurement([1.0] * 4, skip_ratio=0.51), 0.5)
    assert gain == pytest.approx(0.01 * KL_PER_SKIP)


@pytest.fixture
def plane(model, shares, evaluator) -> Plane:
    modalities = ["text", "vision"]
    survey = Survey(evaluator, 1, find_stack(model, evaluator.layers))
    alpha = normalise_alpha(measure_alpha(survey, modalities))
    policy = keep_all_policy(model).model_copy(update={"alpha": alpha})
    return Plane(evaluator, policy, quantile_curves(shares, policy, modalities))


def test_the_targets_are_hit_on_a_model(evaluator, plane) -> None:
    for target, found in search_frontier(plane, [0.5, 0.75]).found.items():
        assert target <= found.measurement.skip_ratio <= target + 0.01
        assert evaluator.measure(plane.request(found.place)).kl == found.measurement.kl


def test_kl_and_skip_ratio_grow_with_the_place(plane) -> None:
    steps = [0.0, 0.3, 0.6, 1.0]
    measured = [plane.at((step, step)) for step in steps]
    assert [m.skip_ratio for m in measured] == pytest.approx(steps, abs=0.12)
    kls = [m.kl for m in measured]
    assert kls[0] == pytest.approx(0, abs=1e-9)
    assert kls == sorted(kls)


def test_going_towards_a_target_keeps_the_direction(plane) -> None:
    for start in ((0.2, 0.6), (0.7, 0.9)):
        u, v = plane.towards(0.5, start, 0.02)
        assert 0.5 <= plane.at((u, v)).skip_ratio <= 0.53
        assert (u < v) == (start[0] < start[1])
