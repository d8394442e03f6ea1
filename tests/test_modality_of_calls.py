"""The modality of every token in every call of a model, as its experts find it."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import modes_fx
from modes_fx import Modality
from modes_fx.attach import attached, find_expert_modules
from tests.tiny import (
    IMAGE_TOKEN,
    PAD,
    VIDEO_TOKEN,
    chat,
    left_padded,
    right_padded,
    tiny_vlm,
    video_chat,
)

WORDS_FROM = 8
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": list(range(WORDS_FROM))}
IMAGES = chat(text=4, images=2)
BATCHES = {
    "text": chat(text=5),
    "several images": IMAGES,
    "video": video_chat(text=4),
    "left padding": left_padded(IMAGES, chat(text=2, seed=1), chat(text=3, images=1, seed=2)),
    "right padding": right_padded(IMAGES, chat(text=2, seed=1)),
}


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    return tiny_vlm(layers=1)


@pytest.fixture
def model(pristine) -> Iterator[nn.Module]:
    modes_fx.attach(pristine, max_tokens=64)
    with torch.no_grad():
        yield pristine
    modes_fx.detach(pristine)


@pytest.fixture
def seen(model) -> Iterator[list[list[int]]]:
    """The codes that the experts find, call by call."""
    calls: list[list[int]] = []
    buffer = attached(model).modality.on(torch.device("cpu"))

    def record(*_) -> None:
        calls.append(buffer.codes[: int(buffer.tokens)].tolist())

    [layer] = find_expert_modules(model).values()
    handle = layer.register_forward_pre_hook(record)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a skipping policy is attached, but this call did not")
        yield calls
    handle.remove()


def expected(call: dict) -> list[int]:
    """The codes of a prompt, from its ids and its mask alone."""
    ids, codes = call["input_ids"], torch.full_like(call["input_ids"], Modality.TEXT)
    codes[(ids == IMAGE_TOKEN) | (ids == VIDEO_TOKEN)] = Modality.VISION
    codes[call["attention_mask"] == 0] = Modality.PADDING
    return codes.flatten().tolist()


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", [name for name in BATCHES if name != "right padding"])
def test_generate_knows_the_modality_of_the_prompt_and_of_each_new_token(model, seen, name, cache):
    call = BATCHES[name]
    model.generate(**call, **GREEDY, cache_implementation=cache)
    new = [Modality.TEXT] * len(call["input_ids"])
    assert seen == [expected(call), new, new]


def test_padding_on_the_right_is_told_by_the_mask_of_a_call(model, seen) -> None:
    call = BATCHES["right padding"]
    assert call["input_ids"][1, -1] == PAD
    model(**call)
    assert seen == [expected(call)]


def test_a_prompt_that_continues_a_cache_is_told_from_what_is_in_it(model, seen) -> None:
    call = BATCHES["left padding"]
    ids, mask = call["input_ids"], call["attention_mask"]
    cache = model(**call).past_key_values
    again = torch.cat([mask, torch.ones_like(ids)], dim=1)
    text, length = ids.clamp(min=WORDS_FROM), ids.shape[1]
    positions = torch.arange(length, 2 * length).expand(3, *ids.shape)
    model(input_ids=text, attention_mask=again, past_key_values=cache, position_ids=positions)
    assert seen == [expected(call), [Modality.TEXT] * ids.numel()]


def test_embeddings_without_ids_skip_nothing_and_say_so_once(model, seen) -> None:
    embeddings = model.get_input_embeddings()(chat(text=3)["input_ids"])
    with pytest.warns(UserWarning, match=r"without input_ids.*pass modality="):
        model.generate(inputs_embeds=embeddings, **GREEDY)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model was called without input_ids")
        model(inputs_embeds=embeddings)
    unknown = [Modality.OTHER] * 3
    assert seen == [unknown, [Modality.TEXT], [Modality.TEXT], unknown]


def test_embeddings_take_an_explicit_modality(model, seen) -> None:
    embeddings = torch.randn(1, 3, 32)
    codes = torch.tensor([[Modality.VISION, Modality.VISION, Modality.TEXT]])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model was called without input_ids")
        model(inputs_embeds=embeddings, modality=codes)
    assert seen == [codes[0].tolist()]
