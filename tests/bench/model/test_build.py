"""The model has the sizes of the real one, in proportion; copies of it hold the same weights."""

import pytest
import torch

from modes_fx.bench.model.build import (
    IMAGE,
    MODELS,
    build_model,
    find_model,
    make_prompt,
    share_weights,
)

TINY = find_model("tiny")


@pytest.mark.parametrize("layers", [2, 4])
def test_what_does_not_repeat_with_the_layers_is_cut_in_proportion(layers):
    config = MODELS["qwen3-vl-30b-a3b"].config(layers, 1024)
    text = config.text_config
    assert text.num_hidden_layers == layers
    assert (text.hidden_size, text.moe_intermediate_size) == (2048, 768)
    assert (text.num_experts, text.num_experts_per_tok) == (128, 8)
    assert text.vocab_size == round(151_936 * layers / 48)
    assert config.vision_config.depth == round(27 * layers / 48)


def test_a_prompt_holds_an_image_between_words():
    prompt = make_prompt(TINY, 16, torch.float32)
    ids = prompt["input_ids"][0]
    image = (ids == IMAGE).nonzero().flatten().tolist()
    assert len(ids) == 16
    assert image == list(range(image[0], image[0] + TINY.image_tokens))
    assert 0 < image[0] < image[-1] < 15


def test_half_a_prompt_of_1024_tokens_is_the_image():
    assert MODELS["qwen3-vl-30b-a3b"].image_tokens == 484


def test_a_prompt_too_short_for_its_image_is_refused():
    with pytest.raises(ValueError, match="no room for an image of 4: ask for 7 or more"):
        make_prompt(TINY, 6, torch.float32)


def test_a_model_that_shares_weights_is_another_with_the_same():
    model = build_model(TINY, 1, 16, torch.float32)
    shared = share_weights(model)
    assert shared is not model
    for one, other in zip(model.parameters(), shared.parameters(), strict=True):
        assert one is other
    shared.set_experts_implementation("eager")
    assert model.config.text_config._experts_implementation != "eager"


def test_an_unknown_model_lists_those_there_are():
    with pytest.raises(ValueError, match="no model 'huge'; there are qwen3-vl-30b-a3b, tiny"):
        find_model("huge")
