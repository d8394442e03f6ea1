"""The gate against its reference, and the order of the kept pairs against a stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.kernels import reference
from modes_fx.kernels.triton import compaction
from modes_fx.kernels.triton.limits import DeviceLimitError
from modes_fx.vocabulary import Modality

THETA = torch.tensor([0.3, 0.45, -torch.inf, -torch.inf, torch.inf])


def routing(T: int, K: int, E: int, dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(T, E, generator=generator) * 3).softmax(-1)
    weight, index = scores.topk(min(K, E), dim=-1)
    codes = torch.randint(len(Modality), (T + 3,), generator=generator, dtype=torch.int8)
    return index, weight.to(dtype), codes


def a_gate(codes, share="renormalised", theta=THETA, tokens=None, beta=0.0, min_k=0):
    return compaction.Gate(codes, tokens, theta, share, beta, min_k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", ["renormalised", "weight"])
@pytest.mark.parametrize(("T", "K", "E"), [(1, 1, 3), (7, 2, 3), (64, 8, 8), (33, 6, 128)])
def test_the_gate_is_that_of_the_reference(T, K, E, share, dtype) -> None:
    index, weight, codes = routing(T, K, E, dtype)
    got = compaction.gate(index, weight, E, a_gate(codes, share))
    exact = reference.gate(index, weight, codes, THETA, E, share)
    assert torch.equal(got[0], exact[0])
    assert torch.equal(got[1], exact[1])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("min_k", [0, 1, 3])
def test_options_of_the_policy(beta, min_k) -> None:
    index, weight, codes = routing(50, 4, 8)
    weight[3] = 0.0
    weight[4, 1] = torch.nan
    weight[5] = 0.25  # all shares are equal
    got = compaction.gate(index, weight, 8, a_gate(codes, beta=beta, min_k=min_k))
    exact = reference.gate(index, weight, codes, THETA, 8, "renormalised", beta, min_k)
    assert torch.equal(got[0], exact[0])
    assert_close(got[1], exact[1], equal_nan=True, rtol=1e-6, atol=0)


def test_an_equal_share_keeps_and_nan_stays_visible() -> None:
    index = torch.tensor([[0, 1], [0, 1]])
    weight = torch.tensor([[0.5, 0.5], [torch.nan, 0.5]])
    theta = torch.tensor([0.5, torch.inf, 0, 0, torch.inf])
    codes = torch.tensor([Modality.TEXT, Modality.VISION], dtype=torch.int8)
    kept, kept_weight = compaction.gate(index, weight, 2, a_gate(codes, theta=theta))
    assert kept.tolist() == [[0, 1], [0, 1]]
    assert kept_weight[1].isnan().tolist() == [True, False]


def test_strided_choices() -> None:
    index, weight, codes = routing(9, 2, 4)
    expected = compaction.gate(index, weight, 4, a_gate(codes))
    strided = compaction.gate(index.T.contiguous().T, weight.T.contiguous().T, 4, a_gate(codes))
    assert torch.equal(expected[0], strided[0])
    assert torch.equal(expected[1], strided[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU stops on the assert instead")
@pytest.mark.parametrize(("tokens", "known"), [(9, True), (0, True), (8, False)])
def test_other_tokens_than_those_of_the_call_give_nothing_that_looks_right(tokens, known) -> None:
    index, weight, codes = routing(9, 2, 4)
    _, kept = compaction.gate(index, weight, 4, a_gate(codes, tokens=torch.tensor([tokens])))
    exact = reference.gate(index, weight, codes, THETA, 4, "renormalised")[1]
    assert torch.equal(kept, exact) if known else kept[exact > 0].isnan().all()


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(ValueError, match="'renormalised' or 'weight', got 'router'"):
        a_gate(torch.zeros(1), share="router")


def assert_sorted(slots: compaction.Slots, index: torch.Tensor, E: int, block_m: int) -> None:
    """Everything that the slots say, in plain Python."""
    flat = index.flatten().tolist()
    order = sorted((e, p) for p, e in enumerate(flat) if e < E)
    assert slots.slot_pair[: len(order)].tolist() == [p for _, p in order]
    places = {p: slot for slot, (_, p) in enumerate(order)}
    assert slots.pair_slot.tolist() == [places.get(p, -1) for p in range(len(flat))]
    counts = [sum(e == expert for e, _ in order) for expert in range(E)]
    starts = [sum(counts[:expert]) for expert in range(E + 1)]
    assert slots.expert_start.tolist() == starts
    tiles = [-(-count // block_m) for count in counts]
    assert slots.tile_start.tolist() == [sum(tiles[:expert]) for expert in range(E + 1)]


@given(
    T=st.integers(1, 70),
    K=st.sampled_from([1, 2, 3, 8]),
    E=st.sampled_from([1, 3, 8, 128]),
    skipped=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_kept_pairs_are_sorted_by_expert_and_then_by_pair(T, K, E, skipped, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(E, (T, K), generator=generator)
    index = index.masked_fill(torch.rand(T, K, generator=generator) < skipped, E)
    assert_sorted(compaction.compact(index, E, 16), index, E, 16)


@pytest.mark.parametrize("skipped", [0.0, 0.6])
def test_many_pairs_are_counted_and_placed_in_blocks(skipped) -> None:
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(5, (1100, 3), generator=generator)
    index = index.masked_fill(torch.rand(1100, 3, generator=generator) < skipped, 5)
    assert index.numel() > compaction.PAIRS_OF_ONE_PROGRAM
    assert_sorted(compaction.compact(index, 5, 64), index, 5, 64)


@pytest.mark.parametrize("T", [30, 1100])
def test_gate_and_sort_in_the_same_launches(T) -> None:
    index, weight, codes = routing(T, 2, 6)
    codes = torch.randint(len(Modality), (T,), dtype=torch.int8)
    slots, kept, kept_weight = compaction.gate_and_compact(index, weight, 6, a_gate(codes), 32)
    exact = reference.gate(index, weight, codes, THETA, 6, "renormalised")
    assert torch.equal(kept, exact[0])
    assert torch.equal(kept_weight, exact[1])
    assert_sorted(slots, exact[0], 6, 32)


def test_more_experts_than_the_kernels_rank_are_refused() -> None:
    with pytest.raises(DeviceLimitError, match=r"5000 experts, 2 of them a token: .* up to 1024"):
        compaction.compact(torch.zeros(3, 2, dtype=torch.long), 5000, 16)
