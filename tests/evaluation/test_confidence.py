"""Intervals agree with known values and say what the data can tell."""

import numpy as np
import pytest

from modes_fx.evaluation.confidence import paired_difference, wilson_interval


def test_wilsons_interval_is_the_published_one():
    # Newcombe (1998), Statistics in Medicine 17:857, method 3: 81 of 263 and 1 of 29.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5)])
def test_wilsons_interval_stays_within_0_and_1_and_is_not_a_point(right, total):
    lower, upper = wilson_interval(right, total)
    assert 0 <= lower < upper <= 1


def test_methods_that_answer_alike_do_not_differ():
    right = np.arange(100) % 3 == 0
    assert paired_difference(right, right) == (0.0, (0.0, 0.0))


def test_a_difference_counts_only_where_answers_differ():
    right = np.ones(400, dtype=bool)
    other = right.copy()
    other[:40] = False
    difference, (lower, upper) = paired_difference(right, other)
    assert difference == pytest.approx(0.1)
    # Ten per cent of 400 drawn: a standard error of 1.5 points.
    assert (lower, upper) == pytest.approx((0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015), abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    right, other = np.arange(50) % 2 == 0, np.arange(50) % 5 == 0
    assert paired_difference(right, other, seed=3) == paired_difference(right, other, seed=3)
