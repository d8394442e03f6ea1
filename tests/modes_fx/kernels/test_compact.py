"""The compacting kernel against the reference, on memory full of NaN."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.kernels import compact, reference
from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step

HIDDEN, WIDTH = 12, 5
SWIGLU = Body(
    per_expert=(True, True, True),
    steps=(
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.add.Tensor", ("%0", "p1")),
        Step(SLICE, ("%1", 0, WIDTH, 1)),
        Step("aten.silu.default", ("%2",)),
        Step(SLICE, ("%1", WIDTH, 2 * WIDTH, 1)),
        Step("aten.mul.Tensor", ("%3", "%4")),
        Step(MATMUL, ("%5", "p2", False)),
        Step("aten.mul.Tensor", ("%6", "w")),
    ),
)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, as deterministic mode does."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(tokens: int, top_k: int, experts: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens * 100 + top_k * 10 + experts)
    params = [
        torch.randn(experts, 2 * WIDTH, HIDDEN, generator=generator).to(dtype),
        torch.randn(experts, 2 * WIDTH, generator=generator).to(dtype),
        torch.randn(experts, WIDTH, HIDDEN, generator=generator).to(dtype),
    ]
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    scores = torch.rand(tokens, experts, generator=generator)
    weight, index = scores.topk(top_k, dim=-1)
    return x, index, weight.to(dtype), params, experts


def assert_same(x, index, weight, params, experts, rtol=1e-5) -> None:
    got = compact.experts(x, index, weight, params, SWIGLU, experts)
    exact = reference.experts(x, index, weight, params, SWIGLU, experts)
    assert not got.isnan().any()
    assert_close(got, exact, rtol=rtol, atol=rtol * float(exact.abs().max().clamp_min(1)))


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts"), [(1, 1, 2), (1, 8, 8), (7, 2, 3), (63, 3, 11), (100, 8, 32)]
)
@pytest.mark.parametrize("skipped", [0.0, 0.5, 0.9, 1.0])
def test_it_equals_the_reference(tokens, top_k, experts, skipped) -> None:
    x, index, weight, params, experts = problem(tokens, top_k, experts)
    skip = torch.rand(index.shape, generator=torch.Generator().manual_seed(2)) < skipped
    assert_same(x, index.masked_fill(skip, experts), weight, params, experts)


def test_a_bias_of_a_product_is_rounded_with_it() -> None:
    x, index, weight, params, experts = problem(9, 2, 4, torch.bfloat16)
    body = Body((True, True), (Step(MATMUL, ("x", "p0", True, "p1")),))
    square = torch.cat((params[0], params[2]), dim=1)[:, :HIDDEN]
    bias = torch.cat((params[1], params[1]), dim=1)[:, :HIDDEN]
    first = index[:, :1]
    got = compact.experts(x, first, weight[:, :1], (square, bias), body, experts)
    exact = torch.einsum("toh,th->to", square.float()[first[:, 0]], x.float())
    exact = (exact + bias.float()[first[:, 0]]).bfloat16()
    assert_close(got, exact, rtol=2**-8, atol=0)
    assert (got == exact).float().mean() > 0.95, "the product was rounded before the bias"


def test_all_tokens_may_choose_one_expert() -> None:
    x, index, weight, params, experts = problem(33, 1, 6)
    assert_same(x, torch.full_like(index, 4), weight, params, experts)


def test_no_tokens_at_all() -> None:
    x, index, weight, params, experts = problem(3, 2, 4)
    assert compact.experts(x[:0], index[:0], weight[:0], params, SWIGLU, experts).shape == (0, 12)


def test_any_id_beyond_the_last_expert_is_a_sentinel() -> None:
    x, index, weight, params, experts = problem(5, 2, 4)
    index[0] = torch.tensor([experts, experts + 7])
    assert_same(x, index, weight, params, experts)


def test_weights_of_skipped_pairs_may_be_nan() -> None:
    x, index, weight, params, experts = problem(5, 2, 4)
    index[1, 1], weight[1, 1] = experts, torch.nan
    assert_same(x, index, weight, params, experts)


def test_bfloat16_is_as_near_to_float32_as_rounding_allows() -> None:
    x, index, weight, params, experts = problem(40, 4, 8, torch.bfloat16)
    assert_same(x, index, weight, params, experts, rtol=2e-2)


@given(
    tokens=st.integers(1, 9),
    choice=st.lists(st.integers(0, 5), min_size=18, max_size=18),
)
def test_any_choice_of_experts_and_sentinels(tokens, choice) -> None:
    x, _, weight, params, experts = problem(tokens, 2, 5)
    assert_same(x, torch.tensor(choice).view(9, 2)[:tokens], weight, params, experts)
