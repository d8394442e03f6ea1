"""The model that is timed: layers of a real one, few of them, with random weights.

What does not repeat with the layers, the vision tower's depth and the vocabulary, is cut in the
same proportion, so that the experts' share of the time is that of the whole model.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen3VLMoeConfig

from modes_fx.bench.shapes import LayerShape, find_shape

VISION_START, VISION_END, IMAGE, VIDEO = 0, 1, 2, 3
FIRST_WORD = 4


@dataclass(frozen=True)
class ModelShape:
    """A whole model.

    Attributes:
        name: how the command line spells it.
        experts: the sizes of its experts.
        heads: of attention.
        key_value_heads: of attention.
        head_dim: of each.
        layers: of the whole model; what is timed has fewer.
        vocabulary: of the whole model.
        vision: the fields of its vision tower.
        image_side: patches along one side of the image in the prompt.
    """

    name: str
    experts: LayerShape
    heads: int
    key_value_heads: int
    head_dim: int
    layers: int
    vocabulary: int
    vision: Mapping[str, Any]
    image_side: int

    @property
    def image_tokens(self) -> int:
        """Tokens of the image in the prompt."""
        return int((self.image_side // self.vision["spatial_merge_size"]) ** 2)

    def config(self, layers: int, positions: int) -> Qwen3VLMoeConfig:
        """Describe the model with some of its layers.

        Args:
            layers: how many.
            positions: the longest sequence.
        """
        part, axis = layers / self.layers, self.head_dim // 8
        depth = max(1, round(self.vision["depth"] * part))
        return Qwen3VLMoeConfig(
            text_config={
                **self.experts.fields,
                "vocab_size": max(64, round(self.vocabulary * part)),
                "num_hidden_layers": layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "max_position_embeddings": positions,
                "initializer_range": self.experts.hidden**-0.5,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5_000_000.0,
                    "mrope_section": [self.head_dim // 2 - 2 * axis, axis, axis],
                    "mrope_interleaved": True,
                },
                "pad_token_id": None,
                "eos_token_id": None,
            },
            vision_config={
                **self.vision,
                "depth": depth,
                "out_hidden_size": self.experts.hidden,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )


_QWEN3_VL_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}
_TINY_VISION = {
    **_QWEN3_VL_VISION,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
}

MODELS: Mapping[str, ModelShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            # Sizes from the config.json of Qwen/Qwen3-VL-30B-A3B-Instruct.
            ModelShape(
                "qwen3-vl-30b-a3b",
                find_shape("qwen3-vl-30b-a3b"),
                heads=32,
                key_value_heads=4,
                head_dim=128,
                layers=48,
                vocabulary=151_936,
                vision=_QWEN3_VL_VISION,
                image_side=44,
            ),
            # For tests of the bench itself.
            ModelShape(
                "tiny",
                find_shape("tiny"),
                heads=4,
                key_value_heads=2,
                head_dim=16,
                layers=48,
                vocabulary=512,
                vision=_TINY_VISION,
                image_side=4,
            ),
        )
    }
)
"""By name."""


def find_model(name: str) -> ModelShape:
    """Return a model by name.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]


def build_model(
    shape: ModelShape, layers: int, positions: int, dtype: torch.dtype
) -> PreTrainedModel:
    """Build the model with the random weights it would be trained from.

    Args:
        shape: the model.
        layers: of the language model.
        positions: the longest sequence.
        dtype: of the weights.
    """
    torch.manual_seed(0)
    config = shape.config(layers, positions)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of its own that holds the very parameters of another."""
    memo = {id(parameter): parameter for parameter in model.parameters()}
    shared: PreTrainedModel = copy.deepcopy(model, memo)
    return shared


def make_prompt(shape: ModelShape, tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make a prompt: one image between words.

    Args:
        shape: the model.
        tokens: of the whole prompt.
        dtype: of the pixels.

    Raises:
        ValueError: the image alone is longer.
    """
    words = tokens - shape.image_tokens - 2
    if words < 1:
        raise ValueError(
            f"a prompt of {tokens} tokens has no room for an image of {shape.image_tokens}: ask "
            f"for {shape.image_tokens + 3} or more"
        )
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([VISION_START, *[IMAGE] * shape.image_tokens, VISION_END])
    text = torch.randint(FIRST_WORD, 64, (words,), generator=generator)
    ids = torch.cat([text[: words // 2], image, text[words // 2 :]])[None]
    patches = shape.image_side**2
    numbers = 3 * shape.vision["temporal_patch_size"] * shape.vision["patch_size"] ** 2
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(patches, numbers, generator=generator).to(dtype),
        "image_grid_thw": torch.tensor([[1, shape.image_side, shape.image_side]]),
    }
