"""Training batches look to the model as the processor's would."""

import numpy as np
import pytest
import torch

from modes_fx.bench.demo_model.batches import BatchMaker, augment, image_inputs
from modes_fx.bench.demo_model.chat import encode
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.model import build_processor
from modes_fx.bench.demo_model.questions import heldout_questions


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_patches_equal_the_processors_bit_for_bit(processor) -> None:
    questions = [question for question in heldout_questions(1) if question.images]
    grids = np.stack([np.asarray(i)[..., 0] for q in questions for i in q.images])
    cells = grids.reshape(-1, 2, 64, 2, 64).transpose(0, 1, 3, 2, 4).reshape(-1, 64, 64)
    ours = image_inputs(torch.from_numpy(cells).float() / 255)
    theirs = encode(processor, questions)
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])


def test_the_same_seeds_draw_the_same_chats(processor) -> None:
    first, second = (_draw(processor) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_turn_of_a_chat_ends_with_a_marked_answer(processor) -> None:
    inputs = _draw(processor, turns=3)
    ends = inputs["input_ids"] == processor.tokenizer.eos_token_id
    assert (ends & inputs["answer_mask"]).sum(dim=1).tolist() == [3] * 8
    assert not (inputs["answer_mask"] & (inputs["attention_mask"] == 0)).any()


def test_favoured_kinds_can_take_all_questions_about_images(processor) -> None:
    torch.manual_seed(0)
    maker = BatchMaker(processor, load_digits("train"), seed=0)
    inputs = maker.draw_chats(batch=8, turns=1, favoured=["read_all"], favoured_share=1.0)
    has_one_image = inputs["mm_token_type_ids"].sum(dim=1) == 16
    assert has_one_image.any()
    for ids in inputs["input_ids"][has_one_image]:
        assert "read all digits ." in processor.decode(ids)


def test_augmented_digits_fill_a_cell_and_stay_in_range() -> None:
    torch.manual_seed(0)
    cells = augment(torch.from_numpy(load_digits("train").images[:16]).float() / 255)
    assert cells.shape == (16, 64, 64)
    assert cells.min() >= 0
    assert cells.max() <= 1


def _draw(processor, turns: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    maker = BatchMaker(processor, load_digits("train"), seed=0)
    return maker.draw_chats(batch=8, turns=turns)
