"""How a policy spells its targets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.errors import PolicyError
from modes_fx.policy_fields import target_key


@pytest.mark.parametrize(
    ("target", "key"),
    [(0.5, "0.5"), ("0.50", "0.5"), (1, "1.0"), (-0.0, "0.0"), (0.1 + 0.2, "0.3"), ("1e-1", "0.1")],
)
def test_equal_targets_have_one_spelling(target, key):
    assert target_key(target) == key


@given(st.floats(0, 1))
def test_spelling_twice_changes_nothing(target):
    key = target_key(target)
    assert target_key(key) == key
    assert float(key) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("target", [-0.1, 1.1, float("nan"), float("inf"), "half", "", None, True])
def test_what_is_not_a_skip_ratio_is_refused(target):
    with pytest.raises(PolicyError, match="between 0 and 1"):
        target_key(target)
