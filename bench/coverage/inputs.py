"""The inputs of one tiny call: a short text, with an image in it where the model takes one."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.bench.coverage.sizes import IMAGE, IMAGE_TOKEN, PATCH
from modes_fx.vocabulary import Modality

SIDE = IMAGE // PATCH
PATCHES = SIDE**2
BEFORE, AFTER, STEPS = 5, 9, 2
FIRST_WORD, LAST_WORD = 5, 280

TOKENS_PER_IMAGE = {"deepseek_ocr2": 145, "step3p7": 1, "unlimited_ocr": 3}
"""Types that do not merge 2 x 2 patches into one token."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a prefill and of the decode steps that follow.

    Attributes:
        prefill: arguments of the first call.
        steps: the token of each later call, ``[1, 1]``.
        codes: ``[S]`` the modality code of each token of the first call.
    """

    prefill: dict[str, Any]
    steps: tuple[Tensor, ...]
    codes: Tensor

    @property
    def has_image(self) -> bool:
        """Whether there is an image in the first call."""
        return bool((self.codes == Modality.VISION).any())


def tiny_inputs(model: PreTrainedModel, *, image: bool) -> Inputs:
    """Make inputs for a tiny model.

    Args:
        model: from ``tiny_model``.
        image: put an image between the words; see :func:`takes_images`.
    """
    generator = torch.Generator().manual_seed(0)
    patches = TOKENS_PER_IMAGE.get(model.config.model_type, PATCHES // 4) if image else 0
    words = torch.randint(
        FIRST_WORD, LAST_WORD, (1, BEFORE + patches + AFTER + STEPS), generator=generator
    )
    ids, steps = words[:, :-STEPS].clone(), words[:, -STEPS:].split(1, dim=1)
    ids[:, BEFORE : BEFORE + patches] = IMAGE_TOKEN
    is_image = ids == IMAGE_TOKEN
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parameters = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in parameters:
        given["decoder_input_ids"] = words[:, : BEFORE + 1].clone()
    if image:
        types = {name: is_image.int() for name in ("mm_token_type_ids", "moe_mm_token_type_ids")}
        given |= {name: value for name, value in types.items() if name in parameters}
        given |= _image(model, generator)
    codes = torch.where(is_image, Modality.VISION.value, Modality.TEXT.value)
    return Inputs(given, tuple(steps), codes[0])


def takes_images(model: PreTrainedModel) -> bool:
    """Return whether a model's forward takes images."""
    return "pixel_values" in inspect.signature(model.forward).parameters


def _image(model: PreTrainedModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the arguments that carry one image, in the layout that the forward asks for."""
    parameters = inspect.signature(model.forward).parameters
    vision: Any = getattr(model.config, "vision_config", None)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    if "image_grid_thw" in parameters:
        grid = {"image_grid_thw": torch.tensor([[1, SIDE, SIDE]])}
        depth = getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", None))
        if hasattr(vision, "posemb_grid_size"):
            return {
                "pixel_values": random(PATCHES // 4, 2 * PATCH, 2 * PATCH, 3),
                "image_grid_thw": torch.tensor([[1, SIDE // 2, SIDE // 2]]),
            }
        if hasattr(vision, "pos_emb_height") and depth is None:
            return {"pixel_values": random(PATCHES, 3, PATCH, PATCH), **grid}
        return {"pixel_values": random(PATCHES, 3 * (depth or 1) * PATCH**2), **grid}
    if "image_position_ids" in parameters:
        side = 2 * vision.pooling_kernel_size
        positions = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy")
        return {
            "pixel_values": random(1, side**2, 3 * PATCH**2),
            "image_position_ids": torch.stack(positions, -1).reshape(1, -1, 2),
        }
    if "spatial_shapes" in parameters:
        return {
            "pixel_values": random(1, PATCHES, 3 * PATCH**2),
            "spatial_shapes": torch.tensor([[SIDE, SIDE]]),
            "pixel_attention_mask": torch.ones(1, PATCHES, dtype=torch.long),
        }
    if "image_grid_hw" in parameters:
        return {
            "pixel_values": random(PATCHES, 3 * PATCH**2),
            "image_grid_hw": torch.tensor([[SIDE, SIDE]]),
        }
    sizes = {"image_sizes": torch.tensor([[IMAGE, IMAGE]])} if "image_sizes" in parameters else {}
    return {"pixel_values": random(1, 3, IMAGE, IMAGE), **sizes}
