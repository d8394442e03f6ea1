"""Chats become batches whose answer tokens are marked, whatever the shape of the chat."""

import copy

import pytest
import torch
from PIL import Image, ImageFile

from modes_fx.bench.demo_model.chat import question_messages
from modes_fx.bench.demo_model.model import build_processor
from modes_fx.bench.demo_model.questions import heldout_questions
from modes_fx.calibration import Batch, ChatBatches, encode_chats

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


def test_where_the_prompt_is_not_the_beginning_the_templates_marks_tell(processor) -> None:
    marking = copy.deepcopy(processor)
    marking.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}the answer is{% endif %}"
    )
    batches = encode_chats(marking, [CHATS["earlier turns are prompt"], CHATS["one turn"]])
    assert answers(processor, batches) == {0: "7 <|im_end|>", 1: "7 <|im_end|>"}


def test_text_one_image_and_two_images_go_in_one_batch(processor) -> None:
    chats = [image_chat(2), CHATS["one turn"], image_chat(1)]
    (batch,) = encode_chats(processor, chats)
    assert batch.samples == (1, 2, 0)
    assert batch.inputs["image_grid_thw"].shape == (3, 3)
    assert answers(processor, [batch])[1] == "7 <|im_end|>"
    alone = {place: encode_chats(processor, [chat])[0] for place, chat in enumerate(chats)}
    for row, place in enumerate(batch.samples):
        kept = batch.inputs["attention_mask"][row].bool()
        ids = batch.inputs["input_ids"][row]
        assert torch.equal(ids[kept], alone[place].inputs["input_ids"][0])
        assert not kept[: -int(kept.sum())].any(), "the padding is on the left"


def test_batches_are_encoded_when_they_are_asked_for(processor) -> None:
    broken = turns("what is in the image ?", "7")
    broken[0]["content"] = [{"type": "image", "image": "/no/such/image.png"}]
    batches = ChatBatches(processor, [CHATS["one turn"], broken], batch_size=1)
    assert batches.layout == [((0,), False), ((1,), False)]
    assert answers(processor, [batches[0]]) == {0: "7 <|im_end|>"}
    with pytest.raises(ValueError, match=r"sample 1 cannot be encoded .*/no/such/image.png"):
        batches[1]


def test_a_corrupt_image_in_a_batch_is_found(processor, tmp_path, monkeypatch) -> None:
    # Some libraries have Pillow fill up torn images, for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    path = tmp_path / "torn.png"
    Image.new("RGB", (128, 128)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    chats = [image_chat(1), image_chat(1), image_chat(1)]
    chats[1] = copy.deepcopy(chats[1])
    chats[1][0]["content"][0]["image"] = str(path)
    with pytest.raises(ValueError, match=r"sample 1 cannot be encoded .*Mend it or leave it out"):
        encode_chats(processor, chats)


def test_an_empty_answer_is_refused(processor) -> None:
    with pytest.raises(ValueError, match="sample 1 has an empty answer"):
        encode_chats(processor, [CHATS["one turn"], turns("what is 3 plus 4 ?", " ")])


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_every_second_sample_of_each_length_can_be_held_back(processor, count) -> None:
    chats = [turns("sort " + "3 " * (n // 2 + 1) + ".", "3") for n in range(count)]
    layout = ChatBatches(processor, chats, batch_size=2, hold_back=True).layout
    halves = {False: [], True: []}
    for samples, held_back in layout:
        halves[held_back] += samples
    assert sorted(halves[False] + halves[True]) == list(range(count))
    assert len(halves[False]) - len(halves[True]) in (0, 1)
    assert [n // 2 for n in halves[True]] == list(range(count // 2))
    again = ChatBatches(processor, chats, batch_size=2, hold_back=True).layout
    assert again == layout
