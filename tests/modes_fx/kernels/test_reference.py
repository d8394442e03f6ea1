"""The semantics, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.kernels import reference
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.vocabulary import Modality

E = 4
KEEP_ALL = torch.tensor([-torch.inf] * 4 + [torch.inf])
INDEX = torch.tensor([[0, 1, 2], [3, 2, 1]])
WEIGHT = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
TEXT_THEN_VISION = torch.tensor([Modality.TEXT, Modality.VISION], dtype=torch.int8)


def thresholds(text: float, vision: float) -> torch.Tensor:
    theta = KEEP_ALL.clone()
    theta[Modality.TEXT], theta[Modality.VISION] = text, vision
    return theta


def gate(weight=WEIGHT, theta=KEEP_ALL, modality=TEXT_THEN_VISION, share="renormalised", **options):
    return reference.gate(INDEX, weight, modality, theta, E, share, **options)


def test_a_pair_is_kept_when_its_share_reaches_the_threshold_of_its_modality() -> None:
    index, weight = gate(theta=thresholds(text=0.25, vision=0.5))
    assert index.tolist() == [[0, 1, E], [3, E, E]]
    assert_close(weight, torch.tensor([[0.5, 0.3, 0.0], [0.6, 0.0, 0.0]]))


def test_an_equal_share_keeps() -> None:
    half = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    index, _ = gate(weight=half, theta=thresholds(text=0.5, vision=0.25))
    assert index.tolist() == [[0, E, E], [3, 2, 1]]


def test_renormalised_share_ignores_a_common_scale_and_weight_does_not() -> None:
    theta = thresholds(text=0.25, vision=0.25)
    assert gate(weight=WEIGHT * 10, theta=theta)[0].tolist() == gate(theta=theta)[0].tolist()
    assert (gate(weight=WEIGHT * 10, theta=theta, share="weight")[0] < E).all()


def test_zero_over_zero_counts_as_zero() -> None:
    nothing = torch.zeros(2, 3)
    assert (gate(weight=nothing, theta=thresholds(text=0.1, vision=0.0))[0][0] == E).all()
    assert (gate(weight=nothing, theta=thresholds(text=0.0, vision=0.0))[0] < E).all()


def test_a_nan_share_is_kept_so_that_a_models_nan_stays_visible() -> None:
    broken = WEIGHT.clone()
    broken[0, 0] = torch.nan
    index, weight = gate(weight=broken, theta=thresholds(text=torch.inf, vision=torch.inf))
    assert index[0].tolist() == [0, 1, 2]
    assert weight[0, 0].isnan()
    assert (index[1] == E).all()


def test_padding_computes_nothing_and_other_tokens_are_never_skipped() -> None:
    codes = torch.tensor([Modality.PADDING, Modality.OTHER], dtype=torch.int8)
    index, _ = gate(theta=KEEP_ALL, modality=codes)
    assert (index[0] == E).all()
    assert index[1].tolist() == INDEX[1].tolist()


def test_min_k_keeps_the_largest_shares_but_not_those_of_padding() -> None:
    index, _ = gate(theta=thresholds(text=0.9, vision=0.9), min_k=2)
    assert index.tolist() == [[0, 1, E], [3, 2, E]]
    padding = torch.full((2,), Modality.PADDING, dtype=torch.int8)
    assert (gate(modality=padding, min_k=2)[0] == E).all()


def test_kept_mass_exponent_one_renormalises_the_kept_weights() -> None:
    _, weight = gate(theta=thresholds(text=0.25, vision=0.5), kept_mass_exponent=1.0)
    assert_close(weight.sum(-1), WEIGHT.sum(-1))


@given(
    beta=st.floats(0, 1),
    min_k=st.integers(0, 3),
    weights=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
    share=st.sampled_from(["renormalised", "weight"]),
)
def test_without_thresholds_no_option_has_an_effect(beta, min_k, weights, share) -> None:
    weight = torch.tensor(weights).view(2, 3)
    index, kept = gate(weight=weight, share=share, kept_mass_exponent=beta, min_k=min_k)
    assert torch.equal(index, INDEX)
    assert torch.equal(kept, weight)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_threshold_keeps_no_more(low, high) -> None:
    low, high = sorted((low, high))
    kept_low = gate(theta=thresholds(low, low))[0] < E
    kept_high = gate(theta=thresholds(high, high))[0] < E
    assert (kept_high <= kept_low).all()


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(ValueError, match="'renormalised' or 'weight'"):
        reference.routing_share(WEIGHT, "router")


def test_experts_are_the_weighted_sum_of_matrices() -> None:
    body = Body((True,), (Step(MATMUL, ("x", "p0", True)), Step("aten.mul.Tensor", ("%0", "w"))))
    matrices = torch.randn(E, 5, 5)
    x = torch.randn(2, 5)
    expected = torch.stack(
        [sum(WEIGHT[t, k] * matrices[INDEX[t, k]] @ x[t] for k in range(3)) for t in range(2)]
    )
    assert_close(reference.experts(x, INDEX, WEIGHT, [matrices], body, E), expected)


def test_a_token_without_kept_pairs_gets_exactly_zero() -> None:
    body = Body((True,), (Step(MATMUL, ("x", "p0", True)),))
    index = torch.tensor([[0, 1], [E, E]])
    out = reference.experts(torch.randn(2, 5), index, WEIGHT, [torch.randn(E, 5, 5)], body, E)
    assert (out[1] == 0).all()
    assert (out[0] != 0).any()
