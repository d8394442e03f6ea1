"""Baselines keep exactly the pairs they say and are measured like everything else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.attach import find_expert_modules
from modes_fx.calibration import (
    RandomSkipping,
    ReducedTopK,
    Request,
    UnreachableTargetError,
    measure_selection,
    single_threshold,
    two_thresholds,
)
from modes_fx.calibration.data import token_codes
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.vocabulary import Modality


def padded(count: int, padding: int) -> torch.Tensor:
    return torch.arange(count) >= padding


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(0, 4), st.integers(1, 60), st.integers(0, 5))
def test_reduced_top_k_keeps_k_pairs_of_a_token_on_average(k, count, padding) -> None:
    tokens = padded(count + padding, padding)
    weight = torch.rand(len(tokens), 4, generator=seeded())
    kept = ReducedTopK(k).keep(weight, tokens, seeded())[tokens]
    assert kept.sum() == pytest.approx(k * count, abs=0.5)
    assert set(kept.sum(1).tolist()) <= {int(k), int(k) + 1}
    assert kept.masked_fill(kept, 0).sum() == 0
    dropped, least = weight[tokens].masked_fill(kept, 0), weight[tokens].masked_fill(~kept, 2)
    assert (dropped.amax(1) <= least.amin(1)).all()


@given(st.floats(0, 1), st.integers(1, 60), st.integers(0, 5))
def test_random_skipping_skips_so_many_pairs(skip_ratio, count, padding) -> None:
    tokens = padded(count + padding, padding)
    kept = RandomSkipping(skip_ratio).keep(torch.rand(len(tokens), 4), tokens, seeded())
    assert int((~kept).sum()) == round(skip_ratio * 4 * count)
    assert kept[:padding].all()


SELECTIONS = [
    pytest.param(ReducedTopK(1), 0.5, id="top-1"),
    pytest.param(ReducedTopK(0.5), 0.75, id="top-0.5"),
    pytest.param(RandomSkipping(0.6), 0.6, id="random"),
]


@pytest.mark.parametrize(("selection", "skip_ratio"), SELECTIONS)
def test_a_selection_skips_its_part_in_every_layer(model, reference, selection, skip_ratio) -> None:
    measured = measure_selection(model, reference, selection)
    assert measured.skip_ratio_by_layer == pytest.approx(
        dict.fromkeys(find_expert_modules(model), skip_ratio), abs=0.01
    )
    assert measured.kl > 1e-3


def test_keeping_all_pairs_is_the_full_model(model, reference) -> None:
    for renormalise in (False, True):
        measured = measure_selection(model, reference, ReducedTopK(2, renormalise))
        assert measured.skip_ratio == 0
        assert measured.kl == pytest.approx(0, abs=1e-9)


def test_a_selection_is_that_of_a_model_with_fewer_experts_a_token(model, reference) -> None:
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
    measured = measure_selection(model, reference, ReducedTopK(1))
    assert_close(measured.difference.kl_by_sample, expected.kl_by_sample, rtol=1e-3, atol=1e-9)


def test_renormalised_weights_keep_their_sum(model, reference) -> None:
    plain = measure_selection(model, reference, ReducedTopK(1))
    scaled = measure_selection(model, reference, ReducedTopK(1, renormalise=True))
    assert scaled.skip_ratio == plain.skip_ratio
    assert scaled.kl != plain.kl


def test_chance_follows_the_seed(model, reference) -> None:
    first, again, other = (
        measure_selection(model, reference, RandomSkipping(0.5), seed=seed) for seed in (1, 1, 2)
    )
    assert first.kl == again.kl != other.kl


def test_the_model_is_as_before(model, reference) -> None:
    implementations = model.get_experts_implementation()
    measure_selection(model, reference, RandomSkipping(0.9))
    assert model.get_experts_implementation() == implementations
    assert reference.compare(model).kl == 0


def test_padding_is_not_counted(model, reference, batches) -> None:
    codes = torch.cat([token_codes(model, batch.inputs) for batch in batches])
    counts = measure_selection(model, reference, ReducedTopK(1)).counts.values()
    for count in counts:
        assert count[:, 0].tolist() == [2 * int((codes == m).sum()) for m in Modality]


def test_a_single_threshold_hits_its_target(model, shares, evaluator) -> None:
    policy = keep_all_policy(model)
    found = single_threshold(evaluator, policy, shares, 0.4)
    assert 0.4 <= found.measurement.skip_ratio <= 0.41
    assert found.tau["text"] == found.tau["vision"]
    theta = found.tau["text"]
    below = torch.cat([share for of in shares.values() for share in of.values()]) < theta
    assert below.double().mean() == pytest.approx(0.4, abs=0.03)


def test_two_thresholds_are_at_least_as_good_as_their_frontier_says(
    model, shares, evaluator
) -> None:
    policy = keep_all_policy(model)
    found = two_thresholds(evaluator, policy, shares, [0.4], size=4)[0.4]
    assert 0.4 <= found.measurement.skip_ratio <= 0.41
    single = single_threshold(evaluator, policy, shares, 0.4)
    assert found.measurement.kl <= 1.1 * single.measurement.kl


def test_a_threshold_cannot_reach_what_never_skips(model, reference, shares, evaluator) -> None:
    class Full:
        def measure(self, request):
            return evaluator.measure(Request())

    with pytest.raises(UnreachableTargetError, match=r"skip 0\.0% of the pairs"):
        single_threshold(Full(), keep_all_policy(model), shares, 0.4)
