"""Questions become chats, and chats become left-padded inputs with marked answers."""

import pytest
import torch

from modes_fx.bench.demo_model.chat import (
    encode,
    encode_with_answers,
    mark_answers,
    question_messages,
)
from modes_fx.bench.demo_model.model import IMAGE_TOKENS, build_processor
from modes_fx.bench.demo_model.questions import Question, heldout_questions


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return heldout_questions(2)


def test_a_chat_holds_the_images_then_the_question() -> None:
    question = next(q for q in heldout_questions(1) if q.kind == "two_images")
    messages = question_messages(question, with_answer=True, system="You are a helpful assistant.")
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert [part["type"] for part in messages[1]["content"]] == ["image", "image", "text"]


def test_the_vocabulary_covers_every_question(processor, questions) -> None:
    inputs = encode_with_answers(processor, heldout_questions(30))
    assert not (inputs["input_ids"] == processor.tokenizer.unk_token_id).any()


def test_the_chat_template_writes_a_system_prompt(processor) -> None:
    question = Question("plus", "what is 3 plus 4 ?", "7")
    messages = question_messages(question, with_answer=True, system="You are a helpful assistant.")
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nwhat is 3 plus 4 ?<|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n"
    )


def test_every_image_becomes_sixteen_tokens_of_vision(processor, questions) -> None:
    inputs = encode(processor, questions)
    vision = inputs["mm_token_type_ids"].sum(dim=1)
    assert vision.tolist() == [IMAGE_TOKENS * len(q.images) for q in questions]
    assert inputs["pixel_values"].shape == (64 * sum(len(q.images) for q in questions), 1536)


def test_padding_is_on_the_left(processor, questions) -> None:
    inputs = encode(processor, questions)
    mask = inputs["attention_mask"]
    assert (mask.diff(dim=1) >= 0).all()
    assert mask[:, -1].all()
    assert not mask.all()


def test_the_mask_covers_exactly_the_answer_and_its_end(processor, questions) -> None:
    inputs = encode_with_answers(processor, questions)
    for ids, mask, question in zip(
        inputs["input_ids"], inputs["answer_mask"], questions, strict=True
    ):
        assert processor.decode(ids[mask]) == f"{question.answer} <|im_end|>"


def test_every_answer_of_a_longer_chat_is_marked(processor) -> None:
    asked = heldout_questions(1)[:3]
    chat = [m for question in asked for m in question_messages(question, with_answer=True)]
    text = processor.apply_chat_template(chat, tokenize=False)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    spoken = processor.decode(ids[mark_answers(ids, processor.tokenizer)])
    assert spoken == " ".join(f"{question.answer} <|im_end|>" for question in asked)


def test_a_prompt_has_no_answer_to_mark(processor, questions) -> None:
    ids = encode(processor, questions)["input_ids"]
    assert not mark_answers(ids, processor.tokenizer).any()
    assert ids.dtype == torch.int64
