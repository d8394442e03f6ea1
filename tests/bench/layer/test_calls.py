"""Thresholds skip what was asked for; no call finds weights that another left in a cache."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.bench.layer.calls import CACHES, copies_needed, make_cycle, threshold
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")
EXPERT_BYTES = 3 * 64 * 32 * 4


@given(
    skip=st.floats(0, 0.999),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_a_threshold_skips_the_share_of_pairs_asked_for(skip, tokens, seed):
    logits = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed))
    share = logits.softmax(-1)
    kept = int((share >= threshold(share, skip)).sum())
    assert kept == max(share.numel() - round(skip * share.numel()), 1)


def test_nothing_is_below_the_threshold_of_skip_0():
    assert threshold(torch.tensor([[0.5, 0.5]]), 0.0) == -math.inf


def test_pairs_of_equal_share_are_kept_together():
    share = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert bool((share >= threshold(share, 0.5)).all())


@pytest.mark.parametrize(("skip", "kept"), [(0.0, 2), (0.5, 1), (0.9, 1)])
def test_one_token_keeps_the_same_number_of_pairs_in_every_call(skip, kept):
    cycle = make_cycle(TINY, 1, skip, torch.float32, copies=2)
    counts = [int((call.kept_index < TINY.experts).sum()) for call in cycle.calls]
    assert counts == [kept] * 8
    assert cycle.kept == cycle.hit == kept
    assert cycle.skip_ratio == 1 - kept / 2


def test_calls_of_one_token_share_no_expert():
    cycle = make_cycle(TINY, 1, 0.0, torch.float32, copies=2)
    used = [(call.copy, expert) for call in cycle.calls for expert in call.index[0].tolist()]
    assert len(used) == len(set(used)) == 2 * TINY.experts
    assert cycle.streamed == 2 * TINY.experts * EXPERT_BYTES


def test_only_weights_of_kept_pairs_count_as_streamed():
    cycle = make_cycle(TINY, 1, 0.5, torch.float32, copies=1)
    assert cycle.streamed == 4 * EXPERT_BYTES


def test_the_skip_ratio_of_many_tokens_is_near_what_was_asked_for():
    cycle = make_cycle(TINY, 200, 0.75, torch.float32, copies=1)
    assert cycle.skip_ratio == pytest.approx(0.75, abs=0.01)
    assert cycle.pairs == 400


def test_every_skip_ratio_sees_the_same_tokens_and_routing():
    dense, sparse = (make_cycle(TINY, 5, skip, torch.float32, copies=1) for skip in (0.0, 0.5))
    for one, other in zip(dense.calls, sparse.calls, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.index, other.index)


def test_there_are_enough_copies_for_four_caches():
    cache = 10 * EXPERT_BYTES
    copies = copies_needed(TINY, 1, 0.5, torch.float32, cache)
    assert copies == 10  # four calls of one expert each a copy
    assert make_cycle(TINY, 1, 0.5, torch.float32, copies).streamed >= CACHES * cache


def test_few_experts_make_a_cycle_too():
    shape = replace(TINY, experts=2, top_k=2)
    assert len(make_cycle(shape, 1, 0.0, torch.float32, copies=3).calls) == 3


@pytest.mark.parametrize("skip", [-0.1, 1.0])
def test_a_skip_ratio_out_of_range_is_refused(skip):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        make_cycle(TINY, 1, skip, torch.float32, copies=1)


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="at least one token, got 0"):
        make_cycle(TINY, 0, 0.0, torch.float32, copies=1)
