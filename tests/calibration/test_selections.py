"""Selections keep exactly the pairs they say and are measured like everything else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.attach import find_expert_modules
from modes_fx.calibration import RandomSkipping, ReducedTopK, RelativeRule, measure_selection
from modes_fx.calibration.data import token_codes
from modes_fx.calibration.selections import Pairs, expert_similarity
from modes_fx.vocabulary import Modality


def pairs(weight: torch.Tensor, padding: int = 0, x: torch.Tensor | None = None) -> Pairs:
    tokens = torch.arange(len(weight)) >= padding
    index = torch.arange(weight.shape[1]).expand(weight.shape)
    x = torch.zeros(len(weight), 3) if x is None else x
    return Pairs("layer", x, index, weight, tokens, torch.Generator().manual_seed(0))


@given(st.floats(0, 4), st.integers(1, 60), st.integers(0, 5))
def test_reduced_top_k_keeps_k_pairs_of_a_token_on_average(k, count, padding) -> None:
    weight = torch.rand(count + padding, 4, generator=torch.Generator().manual_seed(0))
    kept = ReducedTopK(k).keep(pairs(weight, padding))[padding:]
    assert kept.sum() == pytest.approx(k * count, abs=0.5)
    assert set(kept.sum(1).tolist()) <= {int(k), int(k) + 1}
    dropped, least = weight[padding:].masked_fill(kept, 0), weight[padding:].masked_fill(~kept, 2)
    assert (dropped.amax(1) <= least.amin(1)).all()


@given(st.floats(0, 1), st.integers(1, 60), st.integers(0, 5))
def test_random_skipping_skips_so_many_pairs(skip_ratio, count, padding) -> None:
    kept = RandomSkipping(skip_ratio).keep(pairs(torch.rand(count + padding, 4), padding))
    assert int((~kept).sum()) == round(skip_ratio * 4 * count)
    assert kept[:padding].all()


WEIGHT = torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]])


def test_the_relative_rule_compares_with_the_largest_weight() -> None:
    kept = RelativeRule(0.5).keep(pairs(WEIGHT))
    assert kept.tolist() == [[True, True, False], [True, False, False]]
    by_layer = RelativeRule({"layer": 0.3, "other": 9.0}).keep(pairs(WEIGHT))
    assert by_layer.tolist() == [[True, True, True], [True, False, False]]
    assert RelativeRule(99.0).keep(pairs(WEIGHT)).tolist() == [[True, False, False]] * 2


def test_protected_tokens_of_large_norm_keep_all_and_padding_is_none_of_them() -> None:
    x = torch.tensor([[9.0], [1.0], [-2.0], [0.5]])
    weight = torch.tensor([[0.9, 0.1]] * 4)
    kept = RelativeRule(0.5, protected=1 / 3).keep(pairs(weight, padding=1, x=x))
    assert kept[:, 1].tolist() == [False, False, True, False]


def test_likeness_scales_what_is_asked_of_a_pair() -> None:
    alike = {"layer": [[1.0, 1.0, 0.1], [1.0, 1.0, 0.1], [0.1, 0.1, 1.0]]}
    kept = RelativeRule(0.7, similarity=alike).keep(pairs(WEIGHT))
    assert kept.tolist() == [[True, False, True], [True, False, True]]


SELECTIONS = [
    pytest.param(ReducedTopK(1), 0.5, id="top-1"),
    pytest.param(ReducedTopK(0.5), 0.75, id="top-0.5"),
    pytest.param(RandomSkipping(0.6), 0.6, id="random"),
]


@pytest.mark.parametrize(("selection", "skip_ratio"), SELECTIONS)
def test_a_selection_skips_its_part_in_every_layer(model, evaluator, selection, skip_ratio) -> None:
    measured = measure_selection(evaluator, selection)
    assert measured.skip_ratio_by_layer == pytest.approx(
        dict.fromkeys(find_expert_modules(model), skip_ratio), abs=0.02
    )
    assert measured.kl > 1e-3


def test_keeping_all_pairs_is_the_full_model(evaluator) -> None:
    for renormalise in (False, True):
        measured = measure_selection(evaluator, ReducedTopK(2, renormalise))
        assert measured.skip_ratio == 0
        assert measured.kl == pytest.approx(0, abs=1e-9)


def test_a_selection_is_that_of_a_model_with_fewer_experts_a_token(
    model, reference, evaluator
) -> None:
    def best_only(_, __, output):
        logits, weight, index = output
        return logits, weight * torch.tensor([1.0, 0.0]), index

    handles = [
        module.register_forward_hook(best_only)
        for name, module in model.named_modules()
        if name.endswith(".mlp.gate")
    ]
    expected = reference.compare(model)
    for handle in handles:
        handle.remove()
    measured = measure_selection(evaluator, ReducedTopK(1))
    assert_close(measured.difference.kl_by_sample, expected.kl_by_sample, rtol=1e-3, atol=1e-9)


def test_renormalised_weights_keep_their_sum(evaluator) -> None:
    plain = measure_selection(evaluator, ReducedTopK(1))
    scaled = measure_selection(evaluator, ReducedTopK(1, renormalise=True))
    assert scaled.skip_ratio == plain.skip_ratio
    assert scaled.kl != plain.kl


def test_chance_follows_the_seed(model, reference, evaluator) -> None:
    first, other = (measure_selection(evaluator, RandomSkipping(0.5), seed=s) for s in (1, 2))
    evaluator.ledger.measured.clear()
    again = measure_selection(evaluator, RandomSkipping(0.5), seed=1)
    assert first.kl == again.kl != other.kl


def test_the_model_is_as_before(model, reference, evaluator) -> None:
    implementations = model.get_experts_implementation()
    measure_selection(evaluator, RandomSkipping(0.9))
    assert model.get_experts_implementation() == implementations
    assert reference.compare(model).kl == 0


def test_padding_is_not_counted(model, evaluator, batches) -> None:
    codes = torch.cat([token_codes(model, batch.inputs) for batch in batches])
    counts = measure_selection(evaluator, ReducedTopK(1)).counts.values()
    for count in counts:
        assert count[:, 0].tolist() == [2 * int((codes == m).sum()) for m in Modality]


def test_experts_are_like_themselves(evaluator) -> None:
    for alike in expert_similarity(evaluator).values():
        matrix = torch.tensor(alike)
        assert_close(matrix.diag(), torch.ones(8))
        assert ((matrix >= 0) & (matrix <= 1 + 1e-6)).all()
