"""The reference skips what was asked for by transformers' own code."""

import pytest
import torch

from modes_fx.bench.model.build import build_model, find_model, make_prompt
from modes_fx.bench.model.phases import DECODE, DECODE_STEPS, PREFILL, Session
from modes_fx.bench.model.reference import make_reference, typical_error

TINY = find_model("tiny")
TOKENS, LAYERS, TOP_K = 16, 2, 2


@pytest.fixture(scope="module")
def session():
    with torch.inference_mode():
        model = build_model(TINY, LAYERS, TOKENS + DECODE_STEPS, torch.float32)
        model.set_experts_implementation("eager")
        yield Session(model, make_prompt(TINY, TOKENS, torch.float32))


def test_at_skip_0_it_is_the_model_itself(session):
    reference = make_reference(session, 0.0)
    assert torch.equal(reference.logits[DECODE], session.decode())
    assert reference.thresholds[PREFILL] == [-torch.inf] * LAYERS
    assert reference.pairs == reference.kept == {PREFILL: TOKENS * TOP_K, DECODE: TOP_K}
    assert reference.hit[DECODE] == TOP_K


def test_half_of_the_pairs_are_kept_at_skip_one_half(session):
    reference = make_reference(session, 0.5)
    assert reference.kept[PREFILL] == pytest.approx(TOKENS * TOP_K / 2, abs=2)
    assert reference.kept[DECODE] == pytest.approx(TOP_K / 2, abs=0.3)
    assert typical_error(reference.logits[PREFILL], session.prefill(every_token=True)) > 0.01


def test_it_leaves_the_model_as_it_was(session):
    before = session.prefill()
    make_reference(session, 0.5)
    assert torch.equal(session.prefill(), before)


def test_the_error_is_that_of_the_median_token():
    right = torch.ones(5, 4)
    wrong = right.clone()
    wrong[:2] = 100
    assert typical_error(wrong, right) == 0
    wrong[2:] *= 1.1
    assert typical_error(wrong, right) == pytest.approx(0.1)


def test_not_a_number_is_infinitely_wrong():
    assert typical_error(torch.full((2, 3), torch.nan), torch.ones(2, 3)) == float("inf")
