"""Chats become batches whose answer tokens are marked, whatever the shape of the chat."""

import pytest
import torch

from modes_fx.bench.demo_model.chat import question_messages
from modes_fx.bench.demo_model.model import build_processor
from modes_fx.bench.demo_model.questions import heldout_questions
from modes_fx.calibration.data import (
    FEW_TOKENS,
    Batch,
    calibrated_modalities,
    count_tokens,
    encode_chats,
    token_codes,
)
from modes_fx.vocabulary import Modality
from tests.tiny import chat, left_padded, tiny_vlm

SYSTEM = {"role": "system", "content": "you are a helpful assistant ."}


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def turns(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def image_chat(images: int) -> list[dict]:
    question = next(q for q in heldout_questions(1) if len(q.images) == images)
    return question_messages(question, with_answer=True)


def answers(processor, batches: list[Batch]) -> dict[int, str]:
    return {
        sample: processor.tokenizer.decode(batch.inputs["input_ids"][row, batch.answer_mask[row]])
        for batch in batches
        for row, sample in enumerate(batch.samples)
    }


CHATS = {
    "one turn": turns("what is 3 plus 4 ?", "7"),
    "a system prompt": [SYSTEM, *turns("what is 3 plus 4 ?", "7")],
    "earlier turns are prompt": turns("what is 1 plus 1 ?", "2", "what is 3 plus 4 ?", "7"),
    "an answer in parts": [
        *turns("what is 3 plus 4 ?"),
        {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
    ],
}


@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS.keys())
def test_the_answer_is_the_last_turn_with_its_end(processor, messages) -> None:
    assert answers(processor, encode_chats(processor, [messages])) == {0: "7 <|im_end|>"}


@pytest.mark.parametrize("images", [1, 2])
def test_the_answer_to_a_question_about_images_is_found(processor, images) -> None:
    messages = image_chat(images)
    expected = f"{messages[-1]['content'][0]['text']} <|im_end|>"
    assert answers(processor, encode_chats(processor, [messages])) == {0: expected}


def test_batches_are_left_padded_and_hold_chats_of_similar_length(processor) -> None:
    chats = [image_chat(1), turns("what is 3 plus 4 ?", "7"), turns("sort 3 1 .", "1 3")]
    text, images = encode_chats(processor, chats, batch_size=2)
    assert (text.samples, images.samples) == ((2, 1), (0,))
    assert "pixel_values" not in text.inputs
    assert text.inputs["attention_mask"][:, -1].all()
    assert answers(processor, [text]) == {2: "1 3 <|im_end|>", 1: "7 <|im_end|>"}


def test_what_a_template_writes_after_the_end_is_no_answer(processor) -> None:
    chats = [turns("what is 3 plus 4 ?", "7 <|im_end|> 8 9")]
    assert answers(processor, encode_chats(processor, chats)) == {0: "7 <|im_end|>"}


def test_a_tokenizer_will_do_for_a_model_without_a_processor(processor) -> None:
    tokenizer = build_processor().tokenizer
    tokenizer.chat_template = processor.chat_template
    batches = encode_chats(tokenizer, [CHATS["one turn"]])
    assert answers(processor, batches) == {0: "7 <|im_end|>"}


def test_a_template_whose_prompt_is_not_the_chats_beginning_is_refused() -> None:
    processor = build_processor()
    processor.chat_template += "{% if add_generation_prompt %}the answer is{% endif %}"
    with pytest.raises(ValueError, match=r"sample 0 do not begin with those of its prompt.*Batch"):
        encode_chats(processor, [CHATS["one turn"]])


@pytest.mark.parametrize("messages", [turns("what is 3 plus 4 ?"), turns("a", "b", "c"), []])
def test_a_chat_without_an_answer_is_refused(processor, messages) -> None:
    with pytest.raises(ValueError, match="sample 1 does not end with an assistant's turn"):
        encode_chats(processor, [CHATS["one turn"], messages])


def test_no_chats_are_refused(processor) -> None:
    with pytest.raises(ValueError, match="no chats"):
        encode_chats(processor, [])


def test_a_batch_with_a_wrong_mask_is_refused() -> None:
    inputs = left_padded(chat(5), chat(4))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"answer_mask \(2, 4\)"):
        Batch(inputs, mask[:, 1:], [0, 1])
    mask[0, -1] = True
    with pytest.raises(ValueError, match="sample 8 has no answer token"):
        Batch(inputs, mask, [7, 8])
    with pytest.raises(ValueError, match="first token"):
        Batch(inputs, ~mask, [7, 8])


def test_tokens_are_counted_by_modality() -> None:
    inputs = left_padded(chat(text=5, images=1), chat(text=3))
    special = int(inputs["input_ids"][0, -1])
    tokens = count_tokens([token_codes(tiny_vlm(layers=1), inputs, [special])])
    others = int((inputs["input_ids"] == special).sum())
    assert tokens[Modality.VISION] == 4
    assert tokens[Modality.OTHER] == others
    assert tokens[Modality.PADDING] == 8
    assert tokens[Modality.TEXT] == 2 * 11 - 4 - others - 8


@pytest.mark.filterwarnings("ignore:the calibration data has no vision")
def test_a_modality_without_tokens_or_with_few_is_said_so() -> None:
    tokens = dict.fromkeys(Modality, 0) | {Modality.TEXT: FEW_TOKENS}
    with pytest.warns(UserWarning, match="no vision token"):
        assert calibrated_modalities(tokens) == ["text"]
    tokens[Modality.VISION] = FEW_TOKENS - 1
    with pytest.warns(UserWarning, match=f"only {FEW_TOKENS - 1} vision tokens"):
        assert calibrated_modalities(tokens) == ["text", "vision"]
    with (
        pytest.raises(ValueError, match="no token of the calibration data"),
        pytest.warns(UserWarning, match="no text token"),
    ):
        calibrated_modalities(dict.fromkeys(Modality, 0))
