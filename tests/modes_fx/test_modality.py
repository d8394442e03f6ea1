"""Token ids, types, masks and explicit codes -> the modality of every token."""

import pytest
import torch
from transformers import PretrainedConfig

from modes_fx.modality import ModalityBuffer, TokenIds, modality_codes
from modes_fx.vocabulary import Modality

TEXT, VISION, AUDIO, OTHER, PADDING = Modality
IDS = TokenIds(vision=(5, 6), audio=(7,), special=(1, 2))


class Nested(PretrainedConfig):
    """A config with a nested one, as multimodal models have."""

    model_type = "nested"

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.image_token_id = 5
        self.video_token_index = 6
        self.image_size = 224
        self.use_image_token_id = True
        self.text_config = PretrainedConfig(audio_token_id=7)


def codes(ids, **arguments):
    return modality_codes(IDS, torch.tensor(ids), **arguments).tolist()


def test_placeholder_ids_are_found_in_nested_configs_and_special_ids_do_not_hide_them() -> None:
    assert TokenIds.from_config(Nested(), special=[1, 2, 5]) == IDS


def test_ids_tell_the_modality() -> None:
    assert codes([[1, 5, 6, 7, 9]]) == [OTHER, VISION, VISION, AUDIO, TEXT]


def test_a_model_without_placeholders_has_text_only() -> None:
    assert modality_codes(TokenIds(), torch.tensor([[5, 6]])).tolist() == [TEXT, TEXT]


def test_token_types_of_the_processor_mark_vision_and_audio() -> None:
    types = torch.tensor([[0, 1, 2, 3]])
    assert codes([[9, 9, 9, 9]], mm_token_type_ids=types) == [TEXT, VISION, VISION, AUDIO]


def test_token_types_of_another_length_are_ignored_as_in_decoding() -> None:
    assert codes([[5]], mm_token_type_ids=torch.tensor([[0, 0, 0]])) == [VISION]


def test_padding_is_read_from_the_last_columns_of_the_mask() -> None:
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    assert codes([[9, 5], [5, 9]], attention_mask=mask) == [PADDING, VISION, VISION, TEXT]


def prepared(*rows) -> torch.Tensor:
    """A causal mask [B, 1, S, S] for tokens that are padding where a row has 0."""
    real = torch.tensor(rows).bool()
    causal = torch.ones(real.shape[1], real.shape[1]).bool().tril()
    return (causal & real[:, None])[:, None]


def added(mask: torch.Tensor, lowest: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


@pytest.mark.parametrize("lowest", [None, -torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("free", [0, 3])
def test_a_token_that_attends_to_nothing_in_a_prepared_mask_is_padding(lowest, free) -> None:
    mask = torch.nn.functional.pad(prepared([0, 0, 1], [1, 1, 1]), (0, free))
    if lowest is not None:
        mask = added(mask, lowest)
    expected = [PADDING, PADDING, TEXT, VISION, TEXT, TEXT]
    assert codes([[9, 9, 9], [5, 9, 9]], attention_mask=mask) == expected


def test_a_token_is_padding_only_if_it_attends_to_nothing_in_every_kind_of_layer() -> None:
    ids, padded, whole = [[9, 9]], prepared([0, 1]), prepared([1, 1])
    assert codes(ids, attention_mask={"full": padded, "sliding": padded}) == [PADDING, TEXT]
    assert codes(ids, attention_mask={"full": padded, "recurrent": None}) == [PADDING, TEXT]
    assert codes(ids, attention_mask={"full": padded, "sliding": whole}) == [TEXT, TEXT]


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(1, 1, 1, 4),
        torch.zeros(1, 1, 1, 4, dtype=torch.long),
        prepared([0, 0, 1]),
        {"full": None},
    ],
)
def test_a_prepared_mask_that_says_nothing_about_padding_changes_nothing(mask) -> None:
    assert codes([[9]], attention_mask=mask) == [TEXT]


def test_explicit_codes_override_all_but_padding() -> None:
    explicit = torch.tensor([[VISION, VISION]])
    mask = torch.tensor([[0, 1]])
    assert codes([[9, 9]], modality=explicit, attention_mask=mask) == [PADDING, VISION]


def test_explicit_codes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"modality has shape \(1, 3\).*\(1, 2\)"):
        codes([[9, 9]], modality=torch.zeros(1, 3))


@pytest.mark.parametrize("wrong", [torch.tensor([[0, -1]]), torch.tensor([[0.0, 1.0]])])
def test_explicit_codes_that_are_none_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="integers 0 to 4"):
        codes([[9, 9]], modality=wrong)


def test_explicit_codes_without_values_are_taken_as_they_are() -> None:
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    assert modality_codes(IDS, ids, modality=ids).shape == (2,)


def test_a_model_without_a_config_has_text_only() -> None:
    assert TokenIds.from_config(None) == TokenIds()


def test_embeddings_without_anything_else_are_other() -> None:
    assert modality_codes(IDS, None, shape=(1, 3)).tolist() == [OTHER] * 3


def test_a_mask_for_tokens_that_were_encoded_before_is_ignored() -> None:
    assert modality_codes(IDS, None, attention_mask=torch.ones(2, 3)).tolist() == []


def test_the_buffer_holds_one_call_and_forgets_it() -> None:
    buffer = ModalityBuffer([torch.device("cpu")], max_tokens=4)
    buffer.write(torch.tensor([TEXT, VISION], dtype=torch.int8))
    codes, tokens = buffer.on(torch.device("cpu"))
    assert (codes.tolist(), tokens.tolist()) == ([TEXT, VISION, OTHER, OTHER], [2])
    buffer.reset()
    assert (codes.tolist(), tokens.tolist()) == ([OTHER] * 4, [0])


def test_a_buffer_made_in_inference_mode_can_be_written_outside_it() -> None:
    with torch.inference_mode():
        buffer = ModalityBuffer([torch.device("cpu")], max_tokens=4)
    buffer.write(torch.tensor([TEXT], dtype=torch.int8))


def test_more_tokens_than_the_buffer_holds_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"5 tokens exceeds the 4 .*max_tokens"):
        ModalityBuffer([torch.device("cpu")], 4).write(torch.zeros(5, dtype=torch.int8))


def test_a_device_the_model_was_not_attached_on_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"experts run on meta.*attached on cpu"):
        ModalityBuffer([torch.device("cpu")], 4).on(torch.device("meta"))
