"""Baselines have a knob that reaches a skip ratio, or say how far they go."""

import pytest

from modes_fx.calibration import baselines
from modes_fx.calibration.baselines import (
    MODES,
    NAEE,
    ONE_THRESHOLD,
    TOP_K,
    TWO_THRESHOLDS,
    without_alpha,
)
from modes_fx.calibration.evaluator import keep_all_policy

TARGET = 0.4
MODALITIES = ["text", "vision"]


@pytest.fixture
def methods(model, shares, evaluator):
    alpha = {path: {"text": 1.0, "vision": 0.25} for path in evaluator.layers}
    draft = keep_all_policy(model).model_copy(update={"alpha": alpha})
    found = baselines(evaluator, draft, shares, MODALITIES, [TARGET], top_k=2)
    return {method.name: method for method in found[TARGET]}


def test_every_method_skips_as_much_as_asked_for_or_as_much_as_it_can(methods, evaluator) -> None:
    ratios = {
        name: method.at_ratio(evaluator, TARGET, 0.02).skip_ratio
        for name, method in methods.items()
    }
    assert len(ratios) == 10
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(TARGET, abs=0.03), name


def test_a_method_that_keeps_the_first_expert_goes_as_far_as_it_can(methods, evaluator) -> None:
    naee = methods[NAEE].at_ratio(evaluator, 0.9, 0.01)
    assert naee.skip_ratio == pytest.approx(0.5, abs=0.01)
    assert methods[TOP_K].at_ratio(evaluator, 0.9, 0.01).skip_ratio == pytest.approx(0.9, abs=0.01)


def test_thresholds_that_were_fitted_are_what_the_knob_goes_through(methods, evaluator) -> None:
    for name in (TWO_THRESHOLDS, MODES):
        middle = methods[name].measure(evaluator, 0.5)
        assert middle.skip_ratio == pytest.approx(TARGET, abs=0.01)
        assert methods[name].measure(evaluator, 0.0).skip_ratio == 0
        assert methods[name].measure(evaluator, 1.0).skip_ratio == 1


def test_one_threshold_is_the_same_for_both_modalities(methods, evaluator) -> None:
    measured = methods[ONE_THRESHOLD].at_ratio(evaluator, TARGET, 0.02).skip_ratio_by_modality
    assert measured["text"] == pytest.approx(measured["vision"], abs=0.15)


def test_without_alpha_thresholds_are_tau() -> None:
    from modes_fx import SkipPolicy

    policy = SkipPolicy({"layer": {"text": 0.5}}, {0.5: {"text": 0.1}}, alpha_exponent=0.5)
    assert float(without_alpha(policy).theta("layer", 0.5)[0]) == pytest.approx(0.1)
