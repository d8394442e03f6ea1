"""The oracle skips pairs in the model's own eager experts."""

import pytest
import torch

from modes_fx.bench.coverage.inputs import tiny_inputs
from modes_fx.bench.coverage.oracle import Oracle, choose_threshold, codes_of_tokens
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.vocabulary import Modality

REGISTERED, UNREGISTERED = "mixtral", ["dbrx", "doge", "jetmoe", "llama4_text", "nllb-moe"]


@pytest.mark.parametrize("model_type", [REGISTERED, *UNREGISTERED])
def test_it_changes_the_output_only_where_it_skips(model_type):
    model = tiny_model(model_type)
    inputs = tiny_inputs(model, image=False)
    with torch.no_grad():
        original = model(**inputs.prefill).logits
    oracle = Oracle(model)
    kept_all = oracle(inputs.codes, lambda path: False, **inputs.prefill).logits
    paths = list(oracle.layers)
    one_layer = oracle(inputs.codes, lambda path: path == paths[0], **inputs.prefill).logits
    both_layers = oracle(inputs.codes, lambda path: True, **inputs.prefill).logits
    torch.testing.assert_close(kept_all, original, atol=1e-5, rtol=0)
    assert (one_layer - original).abs().max() > 1e-3
    assert (both_layers - one_layer).abs().max() > 1e-3
    with torch.no_grad():
        assert torch.equal(model(**inputs.prefill).logits, original)


def test_it_skips_about_half_of_the_pairs_of_each_modality():
    model = tiny_model("aria")
    inputs = tiny_inputs(model, image=True)
    oracle = Oracle(model)
    oracle(inputs.codes, lambda path: True, **inputs.prefill)
    assert len(oracle.layers) == 2
    for layer in oracle.layers.values():
        assert set(layer.thetas) == {Modality.TEXT, Modality.VISION}
        for code, pairs in layer.pairs.items():
            assert 0.2 < layer.kept[code] / pairs < 0.8


def test_a_threshold_lies_in_the_widest_gap_near_the_median():
    assert choose_threshold(torch.tensor([0.9, 0.1, 0.4, 0.2, 0.8, 0.6])) == pytest.approx(0.5)


def test_tokens_of_one_modality_are_recognised_by_their_number():
    codes = torch.tensor([0, 0, 0, 1, 1])
    assert codes_of_tokens(codes, 5).tolist() == codes.tolist()
    assert codes_of_tokens(codes, 2).tolist() == [1, 1]
    with pytest.raises(ValueError, match="4 tokens reach the experts"):
        codes_of_tokens(codes, 4)


def test_shares_that_are_all_alike_are_an_error_not_a_guess():
    model = tiny_model(REGISTERED)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    inputs = tiny_inputs(model, image=False)
    with pytest.raises(ArithmeticError, match="too close to the threshold"):
        Oracle(model)(inputs.codes, lambda path: True, **inputs.prefill)
