"""Mean outputs of skipped experts: added as the reference adds them, collected as defined."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.kernels import means, reference
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.vocabulary import Modality

E, H = 5, 6
TWICE = Body((True,), (Step(MATMUL, ("x", "p0", True)), Step("aten.mul.Tensor", ("%0", "w"))))
ON_INPUT = Body((True,), (Step("aten.mul.Tensor", ("x", "w")), Step(MATMUL, ("%0", "p0", True))))


def problem(tokens: int, top_k: int, seed: int = 0, codes: int = 2):
    """Routing with some pairs skipped, and tables of means."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, E, generator=generator)
    weight, index = scores.topk(top_k, dim=-1)
    kept = index.masked_fill(torch.rand(weight.shape, generator=generator) < 0.5, E)
    modality = torch.randint(0, len(Modality), (tokens + 3,), generator=generator).to(torch.int8)
    table = torch.randn(codes, E, H, generator=generator)
    out = torch.randn(tokens, H, generator=generator)
    return out, index, weight, kept, modality, table


@given(st.integers(1, 30), st.integers(1, E), st.integers(0, 99), st.integers(1, 3))
def test_few_tokens_and_many_get_what_the_reference_adds(tokens, top_k, seed, codes) -> None:
    arguments = problem(tokens, top_k, seed, codes)
    expected = reference.add_skipped_means(*arguments)
    assert_close(means.add_skipped_means(*arguments), expected)
    assert_close(means.add_skipped_means_inline(*arguments), expected)


def test_a_pair_gets_its_weight_times_the_mean_of_its_expert_and_modality() -> None:
    index, kept = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0, E], [E, E]])
    weight = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    modality = torch.tensor([Modality.TEXT, Modality.VISION], dtype=torch.int8)
    table = torch.randn(2, E, H)
    added = means.add_skipped_means(torch.zeros(2, H), index, weight, kept, modality, table)
    assert_close(added[0], 0.3 * table[0, 1])
    assert_close(added[1], 0.6 * table[1, 2] + 0.4 * table[1, 3])


@pytest.mark.parametrize("code", [Modality.OTHER, Modality.PADDING])
def test_tokens_of_codes_without_means_get_nothing(code) -> None:
    out, index, weight, kept, modality, table = problem(9, 3)
    modality.fill_(code)
    assert torch.equal(means.add_skipped_means(out, index, weight, kept, modality, table), out)


def test_pairs_of_no_expert_are_not_taken_for_skipped_ones() -> None:
    out, index, weight, _, modality, table = problem(9, 3)
    index[:, 2] = E
    assert torch.equal(
        means.add_skipped_means(out, index, weight, index.clone(), modality, table), out
    )


def test_bfloat16_is_as_near_to_exact_as_it_can_be() -> None:
    out, index, weight, kept, modality, table = problem(40, 3)
    exact = reference.add_skipped_means(out, index, weight, kept, modality, table)
    got = means.add_skipped_means(
        out.bfloat16(), index, weight.bfloat16(), kept, modality, table.bfloat16()
    )
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("tokens", [2, 40])
def test_means_in_less_precision_than_the_model_are_summed_in_the_models(tokens) -> None:
    out, index, weight, kept, modality, table = problem(tokens, 3)
    arguments = (out, index, weight, kept, modality, table.bfloat16())
    expected = reference.add_skipped_means(*arguments)
    assert_close(means.add_skipped_means(*arguments), expected)
    assert_close(means.add_skipped_means_inline(*arguments), expected)


@pytest.mark.parametrize("body", [TWICE, ON_INPUT], ids=["weight on output", "weight on input"])
def test_collected_sums_give_the_nearest_multiple_of_the_weight(body) -> None:
    _, index, weight, kept, modality, _ = problem(60, 3)
    generator = torch.Generator().manual_seed(1)
    x, params = torch.randn(60, H, generator=generator), [torch.randn(E, H, H, generator=generator)]
    sums = torch.zeros(2, E, H + 1)
    means.collect_skipped(sums, x, index, weight, kept, modality, params, body, E)
    for code in range(2):
        for e in range(E):
            here = (index == e) & (kept == E) & (modality[:60] == code)[:, None]
            token, slot = here.nonzero(as_tuple=True)
            w = weight[token, slot, None]
            y = w * (x[token] @ params[0][e].T)
            assert_close(sums[code, e, :H], (w * y).sum(0))
            assert_close(sums[code, e, H], w.square().sum())


def test_sums_are_added_to_and_do_not_depend_on_how_many_pairs_go_at_once(monkeypatch) -> None:
    _, index, weight, kept, modality, _ = problem(60, 3)
    x, params = torch.randn(60, H), [torch.randn(E, H, H)]
    once, twice = torch.zeros(2, E, H + 1), torch.zeros(2, E, H + 1)
    means.collect_skipped(once, x, index, weight, kept, modality, params, TWICE, E)
    monkeypatch.setattr(means, "PAIRS_AT_ONCE", 7)
    for _ in range(2):
        means.collect_skipped(twice, x, index, weight, kept, modality, params, TWICE, E)
    assert_close(twice, 2 * once)
