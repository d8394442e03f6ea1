"""What the runner refuses, and the positions that it derives."""

import pytest
import torch

from modes_fx.export.errors import ExportError
from modes_fx.export.runner import Interface, Runner, next_positions, text_positions

IMAGES = Interface(
    inputs=["input_ids", "attention_mask", "image_grid_thw", "position_ids"],
    fixed={"image_grid_thw": [2, 3]},
    batch=None,
    position_axes=3,
)
TEXT = Interface(
    inputs=["input_ids", "attention_mask", "position_ids"], fixed={}, batch=1, position_axes=0
)


def prompts(batch: int, images: int) -> dict[str, torch.Tensor]:
    return {
        "position_ids": torch.zeros(3, batch, 4, dtype=torch.int64),
        "input_ids": torch.ones(batch, 4, dtype=torch.int64),
        "image_grid_thw": torch.ones(images, 3, dtype=torch.int64),
    }


def test_inputs_are_put_in_order_and_a_mask_is_added():
    arranged = IMAGES.arrange(prompts(batch=3, images=2))
    assert list(arranged) == IMAGES.inputs
    assert arranged["attention_mask"].tolist() == [[1, 1, 1, 1]] * 3


def test_another_number_of_images_is_refused():
    with pytest.raises(ExportError, match=r"image_grid_thw has shape \[3, 3\].* for \[2, 3\]"):
        IMAGES.arrange(prompts(batch=2, images=3))


def test_positions_on_several_axes_have_to_be_given():
    given = prompts(batch=2, images=2)
    del given["position_ids"]
    with pytest.raises(ExportError, match="position_ids is missing"):
        IMAGES.arrange(given)


def test_an_unknown_input_is_refused():
    with pytest.raises(ExportError, match="not pixel_values"):
        IMAGES.arrange({**prompts(batch=2, images=2), "pixel_values": torch.ones(1)})


def test_positions_in_text_follow_from_the_mask():
    given = {"input_ids": torch.ones(1, 4), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert TEXT.arrange(given)["position_ids"].tolist() == [[0, 0, 1, 2]]


def test_another_batch_is_refused_where_it_is_fixed():
    with pytest.raises(ExportError, match="for a batch of 1, not 2"):
        TEXT.arrange({"input_ids": torch.ones(2, 4)})


def test_the_next_position_follows_the_largest_on_any_axis():
    positions = torch.tensor([[[0, 1, 2]], [[0, 7, 3]]])
    assert next_positions(positions).tolist() == [[[8]], [[8]]]
    assert next_positions(text_positions(torch.tensor([[0, 1, 1]]))).tolist() == [[2]]


def test_a_folder_without_programs_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"interface\.json cannot be read"):
        Runner(tmp_path)
    IMAGES.save(tmp_path)
    with pytest.raises(ExportError, match=r"prefill\.pt2 cannot be loaded"):
        Runner(tmp_path)
