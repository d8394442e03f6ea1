"""Curves of tau: even steps skip even parts of the pairs that were observed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modes_fx import SkipPolicy
from modes_fx.calibration.curves import quantile_curve, quantile_curves, release_curves
from modes_fx.calibration.plane import thetas_of
from modes_fx.kernels.reference import gate
from modes_fx.vocabulary import Modality

products = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40)


@given(products)
def test_a_curve_grows_from_nothing_skipped_to_all(values) -> None:
    curve = quantile_curve(torch.tensor(values, dtype=torch.float64))
    taus = [curve(k / 50) for k in range(51)]
    assert taus[0] == 0
    assert taus == sorted(taus)
    assert taus[-1] > max(values)


@given(st.sets(st.floats(2**-20, 1, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_a_part_of_different_values_lies_below(values, part) -> None:
    curve = quantile_curve(torch.tensor(sorted(values), dtype=torch.float64))
    assert sum(value < curve(part) for value in values) == round(part * len(values))


def test_pairs_of_alpha_zero_are_the_first_to_go() -> None:
    curve = quantile_curve(torch.tensor([0.0, 0.0, 0.0, 0.2, 0.4], dtype=torch.float64))
    assert [curve(part) for part in (0.0, 0.2, 0.6)] == pytest.approx([0, 0.1, 0.1])
    assert quantile_curve(torch.zeros(5, dtype=torch.float64))(0.2) > 0


def test_thresholds_along_the_curves_skip_the_part_asked_for_over_all_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(2, 50, 4, generator=generator)
    share = weight / weight.sum(-1, keepdim=True)
    shares = {path: {"text": part.flatten()} for path, part in zip("ab", share, strict=True)}
    alpha = {"a": {"text": 0.9}, "b": {"text": 0.1}}
    policy = SkipPolicy(alpha=alpha, tau={}, alpha_exponent=0.5)
    curve = quantile_curves(shares, policy, ["text"])["text"]
    index = torch.arange(4).expand(50, 4)
    codes = torch.full((50,), Modality.TEXT.value)
    thetas = thetas_of(policy, {"text": curve(0.3)})
    kept = [
        gate(index, part, codes, thetas[path], 4, "renormalised")[0] < 4
        for path, part in zip("ab", weight, strict=True)
    ]
    assert 1 - torch.stack(kept).double().mean() == pytest.approx(0.3)
    assert kept[0].sum() > kept[1].sum(), "the layer of larger alpha keeps more"


def test_the_release_looks_from_next_to_nothing_to_a_tenth() -> None:
    curves = release_curves(["text", "vision"])
    assert curves["text"](0) == pytest.approx(2 / (1 + math.exp(10)))
    assert curves["text"](1) == pytest.approx(2 / (1 + math.exp(2.9)))
    assert curves["vision"](1) == pytest.approx(2 / (1 + math.exp(4)))
    with pytest.raises(ValueError, match="no grid for audio"):
        release_curves(["text", "audio"])
