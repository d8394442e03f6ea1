"""The sizes of real mixture-of-experts layers, each with the transformers class that computes it.

Every shape builds the model's own experts module, so that what is timed is what a user of the model
runs; only the weights are random. The sizes are those of the checkpoints' ``config.json``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

# T tokens, H hidden size, I intermediate size of an expert, E experts, K experts per token.

MATRICES = 3
"""Of a gated expert: gate, up and down, each H x I."""


@dataclass(frozen=True)
class LayerShape:
    """The experts of one layer.

    Attributes:
        name: how the command line spells it.
        source: the checkpoint whose sizes these are.
        hidden: H.
        width: I.
        experts: E.
        top_k: K.
        config: the configuration class, as ``module:class`` below ``transformers.models``.
        module: the experts class, in the same spelling.
        fields: what the class reads of its configuration.
    """

    name: str
    source: str
    hidden: int
    width: int
    experts: int
    top_k: int
    config: str
    module: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expert_parameters(self) -> int:
        """How many weights one expert's matrices hold; biases are not counted."""
        return MATRICES * self.hidden * self.width

    def with_experts(self, experts: int) -> "LayerShape":
        """Return the same layer with another number of experts."""
        fields = {
            name: experts if name.endswith("experts") else value
            for name, value in self.fields.items()
        }
        return replace(self, experts=experts, fields=fields)

    def without_weights(self) -> nn.Module:
        """Build the experts module on the meta device."""
        config = _named(self.config)(**self.fields)
        config._experts_implementation = "eager"
        with torch.device("meta"):
            module: nn.Module = _named(self.module)(config)
        return module

    def build(self, dtype: torch.dtype, seed: int = 0) -> nn.Module:
        """Build the experts module with random weights that keep the scale of what they are given.

        Args:
            dtype: of the weights.
            seed: of the weights.
        """
        module = self.without_weights().to(dtype).to_empty(device="cpu")
        module.eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in module.named_parameters():
            inputs = self.hidden if name.startswith("gate_up") else self.width
            parameter.normal_(std=1 / math.sqrt(inputs), generator=generator)
        return module


def _named(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(f"transformers.models.{module}"), name)


def _qwen_vl(
    name: str, source: str, hidden: int, width: int, experts: int, top_k: int
) -> LayerShape:
    return LayerShape(
        name,
        source,
        hidden,
        width,
        experts,
        top_k,
        "qwen3_vl_moe.configuration_qwen3_vl_moe:Qwen3VLMoeTextConfig",
        "qwen3_vl_moe.modeling_qwen3_vl_moe:Qwen3VLMoeTextExperts",
        {
            "hidden_size": hidden,
            "moe_intermediate_size": width,
            "num_experts": experts,
            "num_experts_per_tok": top_k,
        },
    )


_ALL = (
    _qwen_vl("qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct", 2048, 768, 128, 8),
    # Its own code loops over expert modules; the text model is a DeepSeek-V3 by its config.json,
    # and that is the class transformers has for it.
    LayerShape(
        "kimi-vl-a3b",
        "moonshotai/Kimi-VL-A3B-Instruct",
        2048,
        1408,
        64,
        6,
        "deepseek_v3.configuration_deepseek_v3:DeepseekV3Config",
        "deepseek_v3.modeling_deepseek_v3:DeepseekV3Experts",
        {
            "hidden_size": 2048,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
        },
    ),
    # The text model is a Qwen3-30B-A3B.
    LayerShape(
        "internvl3.5-30b-a3b",
        "OpenGVLab/InternVL3_5-30B-A3B-HF",
        2048,
        768,
        128,
        8,
        "qwen3_moe.configuration_qwen3_moe:Qwen3MoeConfig",
        "qwen3_moe.modeling_qwen3_moe:Qwen3MoeExperts",
        {
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    # Weights [E, H, 2I] and [E, I, H], gate and up interleaved, biases, clamped activation; the
    # checkpoint stores 4-bit weights, which transformers widens where it has no kernel for them.
    LayerShape(
        "gpt-oss-20b",
        "openai/gpt-oss-20b",
        2880,
        2880,
        32,
        4,
        "gpt_oss.configuration_gpt_oss:GptOssConfig",
        "gpt_oss.modeling_gpt_oss:GptOssExperts",
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
        },
    ),
    LayerShape(
        "glm-4.5v",
        "zai-org/GLM-4.5V",
        4096,
        1408,
        128,
        8,
        "glm4v_moe.configuration_glm4v_moe:Glm4vMoeTextConfig",
        "glm4v_moe.modeling_glm4v_moe:Glm4vMoeTextExperts",
        {
            "hidden_size": 4096,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    _qwen_vl("small", "no checkpoint: a layer of 100 MB", 1024, 512, 32, 4),
    _qwen_vl("tiny", "no checkpoint: for tests of the bench itself", 64, 32, 8, 2),
)

SHAPES: Mapping[str, LayerShape] = MappingProxyType({shape.name: shape for shape in _ALL})
"""By name."""


DEFAULT_SHAPE = _ALL[0].name
"""What is timed unless another is named."""


def find_shape(name: str) -> LayerShape:
    """Return a shape by name.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]
