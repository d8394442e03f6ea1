"""Policies and other methods at the same skip ratio, on the same samples."""

import pytest
import torch

from modes_fx.calibration import compare, measure_policy, paired_ratio
from modes_fx.calibration.baselines import Baseline
from modes_fx.calibration.compare import OURS
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.selections import RandomSkipping, measure_selection

RANDOM = Baseline(
    "random", lambda e, level: measure_selection(e, RandomSkipping(level)), unmodified=True
)
HALF = Baseline("half at most", lambda e, s: measure_selection(e, RandomSkipping(s / 2)), note="!")


@pytest.fixture
def policy(model, evaluator):
    alpha = {path: {"text": 1.0, "vision": 1.0} for path in evaluator.layers}
    tau = {"0.7": {"text": 0.7, "vision": 0.6}}
    return keep_all_policy(model).model_copy(update={"alpha": alpha, "tau": tau})


def test_others_are_measured_where_the_policy_is(evaluator, policy) -> None:
    progress: list[float] = []
    rows = compare(evaluator, policy, {0.7: [RANDOM, HALF]}, progress.append)
    ours, random, half = rows
    assert [row.method for row in rows] == [OURS, "random", "half at most"]
    ratio = measure_policy(evaluator, policy, 0.7).skip_ratio
    assert ours.measurement.skip_ratio == ratio
    assert random.measurement.skip_ratio == pytest.approx(ratio, abs=0.01)
    assert random.reached
    assert half.measurement.skip_ratio == pytest.approx(0.5, abs=0.01)
    assert not half.reached
    assert half.note == "!"
    assert ours.ratio == 1
    assert ours.interval == (1, 1)
    low, high = random.interval
    assert low <= random.ratio <= high
    assert progress == [0.5, 1.0]


def test_a_ratio_that_hangs_on_one_sample_has_a_wide_interval(evaluator, policy) -> None:
    even = measure_policy(evaluator, policy, 0.7)
    sums = torch.ones(12, dtype=torch.float64)
    even.difference.kl_sums.copy_(sums)
    other = measure_selection(evaluator, RandomSkipping(0.5))
    other.difference.kl_sums.copy_(sums * 2)
    assert paired_ratio(even, other) == (0.5, (0.5, 0.5))
    other.difference.kl_sums[0] = 100.0
    ratio, (low, high) = paired_ratio(even, other)
    assert ratio == pytest.approx(12 / 122)
    assert low < ratio < 0.4 < high <= 0.5
