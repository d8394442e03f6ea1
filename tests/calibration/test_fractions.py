"""Thresholds of single layers as fractions of pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.calibration.fractions import Fractions, Shifted
from modes_fx.calibration.plane import Extras
from modes_fx.vocabulary import Modality

SHARES = {
    path: {"text": torch.linspace(0.01, 1, 100), "vision": torch.linspace(0.01, 1, 300)}
    for path in ("a", "b")
}


def fractions(**values: float | None) -> Fractions:
    slots = {
        (path, name): values.get(f"{path}_{name}", 0.5)
        for path in SHARES
        for name in ("text", "vision")
    }
    ordered = {(path, name): SHARES[path][name].double() for path, name in slots}
    return Fractions(slots, ordered)


def test_thresholds_and_fractions_are_two_ways_to_say_the_same() -> None:
    start = fractions(a_text=0.25, a_vision=0.0, b_vision=None)
    thetas = start.thetas()
    assert thetas["a"][Modality.TEXT] == pytest.approx(0.255)
    assert thetas["a"][Modality.VISION] == -math.inf
    assert thetas["b"][Modality.VISION] == math.inf
    assert Fractions.of(thetas, SHARES, ["text", "vision"]).values == start.values


@given(st.sampled_from(["text", "vision"]), st.floats(0.05, 0.9))
def test_moving_one_slot_keeps_what_is_skipped(name, to) -> None:
    start = fractions()
    moved = start.moved(("a", name), to)
    assert moved.values["a", name] == to
    assert moved.skipped == pytest.approx(start.skipped, abs=1e-6)
    others = {value for slot, value in moved.values.items() if slot != ("a", name)}
    assert max(others) - min(others) < 1e-9


def test_what_is_always_or_never_skipped_does_not_shift() -> None:
    shifted = fractions(a_text=0.0, b_text=None).shifted(1.0)
    assert shifted.values["a", "text"] == 0
    assert shifted.values["b", "text"] is None
    assert shifted.values["a", "vision"] > 0.5


def test_a_target_is_hit_by_shifting_all(shares, evaluator) -> None:
    slots = {(path, name): 0.3 for path in shares for name in ("text", "vision")}
    ordered = {slot: shares[slot[0]][slot[1]].double().sort().values for slot in slots}
    shifted = Shifted(evaluator, Fractions(slots, ordered), Extras())
    thetas, measured = shifted.hit(0.6, 0.02)
    assert 0.6 <= measured.skip_ratio <= 0.63
    assert set(thetas) == set(shares)
