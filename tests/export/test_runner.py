"""What the runner refuses, and the inputs that it derives."""

import pytest
import torch

from modes_fx.export.calls import next_positions, text_positions
from modes_fx.export.errors import ExportError
from modes_fx.export.manifest import Value
from modes_fx.export.runner import arrange


def values(**shapes: list[int | str]) -> list[Value]:
    return [Value(name=name, dtype="int64", shape=shape) for name, shape in shapes.items()]


IMAGES = values(
    input_ids=["b", "s"],
    attention_mask=["b", "s"],
    image_grid_thw=[2, 3],
    position_ids=[3, "b", "s"],
)
TEXT = values(input_ids=[1, "s"], attention_mask=[1, "s"], position_ids=[1, "s"])


def prompts(batch: int, images: int) -> dict[str, torch.Tensor]:
    return {
        "position_ids": torch.zeros(3, batch, 4, dtype=torch.int64),
        "input_ids": torch.ones(batch, 4, dtype=torch.int64),
        "image_grid_thw": torch.ones(images, 3, dtype=torch.int64),
    }


def test_inputs_are_put_in_order_and_a_mask_is_added() -> None:
    arranged = arrange(IMAGES, prompts(batch=3, images=2))
    assert list(arranged) == [value.name for value in IMAGES]
    assert arranged["attention_mask"].tolist() == [[1, 1, 1, 1]] * 3


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(ExportError, match=r"image_grid_thw has shape \[3, 3\].* for \[2, 3\]"):
        arrange(IMAGES, prompts(batch=2, images=3))


def test_images_of_different_sizes_are_refused() -> None:
    given = prompts(batch=2, images=2)
    given["image_grid_thw"][1] = 4
    with pytest.raises(ExportError, match=r"of one size, and image_grid_thw is \[\[1, 1, 1\], \[4"):
        arrange(IMAGES, given)


def test_positions_on_several_axes_have_to_be_given() -> None:
    given = prompts(batch=2, images=2)
    del given["position_ids"]
    with pytest.raises(ExportError, match="position_ids is missing"):
        arrange(IMAGES, given)


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(ExportError, match="not pixel_values"):
        arrange(IMAGES, {**prompts(batch=2, images=2), "pixel_values": torch.ones(1)})


def test_positions_in_text_follow_from_the_mask() -> None:
    given = {"input_ids": torch.ones(1, 4), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert arrange(TEXT, given)["position_ids"].tolist() == [[0, 0, 1, 2]]


def test_another_batch_is_refused_where_it_is_fixed() -> None:
    with pytest.raises(ExportError, match=r"input_ids has shape \[2, 4\].* for \[1, s\]"):
        arrange(TEXT, {"input_ids": torch.ones(2, 4)})


def test_the_next_position_follows_the_largest_on_any_axis() -> None:
    positions = torch.tensor([[[0, 1, 2]], [[0, 7, 3]]])
    assert next_positions(positions).tolist() == [[[8]], [[8]]]
    assert next_positions(text_positions(torch.tensor([[0, 1, 1]]))).tolist() == [[2]]
