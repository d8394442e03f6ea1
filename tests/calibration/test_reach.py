"""Reaching a ratio: close above the target, with few measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.calibration.reach import MAX_GUESSES, reach

unit = st.floats(0, 1)


@given(unit, unit, st.floats(0.5, 20), st.floats(0.1, 10))
def test_a_continuous_ratio_is_hit_from_above(target, guess, power, slope) -> None:
    s = reach(lambda s: s**power, target, 0.005, guess=guess, slope=slope)
    assert target <= s**power <= target + 0.005


@given(st.floats(0.01, 0.99), unit)
def test_a_ratio_that_jumps_over_the_target_is_reached_just_after_the_jump(jump, guess) -> None:
    s = reach(lambda s: float(s >= jump), 0.5, 0.005, guess=guess)
    assert jump <= s <= jump + 0.01


def test_a_good_guess_is_measured_once() -> None:
    measured = []

    def ratio(s: float) -> float:
        measured.append(s)
        return 0.6 * s

    assert reach(ratio, 0.3, 0.005, guess=0.504) == 0.504
    assert measured == [0.504]


def test_a_linear_ratio_of_known_slope_takes_two_measurements() -> None:
    measured = []

    def ratio(s: float) -> float:
        measured.append(s)
        return 0.1 + 0.6 * s

    assert 0.5 <= ratio(reach(ratio, 0.5, 0.005, guess=0.2, slope=0.6)) <= 0.505
    assert len(measured) - 1 == 2


@pytest.mark.parametrize("target", [0.0, 0.2])
def test_a_ratio_above_the_target_everywhere_is_reached_at_zero(target) -> None:
    assert reach(lambda s: 0.3 + s / 2, target, 0.005, guess=0.7) == 0


def test_measurements_are_limited() -> None:
    measured = []
    reach(lambda s: measured.append(s) or float(s == 1), 0.5, 0.005)
    assert len(measured) <= MAX_GUESSES
