"""Build a tiny random float32 model of any type from its config class alone."""

import inspect
import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from modes_fx.bench.coverage.sizes import BY_NAME, BY_TYPE, EXPERTS, MODEL_CLASSES, NESTED
from modes_fx.bench.coverage.types import head_of


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Build a model with random weights in evaluation mode.

    Args:
        model_type: a type, or ``outer+inner`` for a type with another one as its text model.
        seed: of the weights.

    Raises:
        Exception: whatever the model's own code raises.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    if model_type in MODEL_CLASSES:
        model = getattr(transformers, MODEL_CLASSES[model_type])(config)
    else:
        model = getattr(transformers, head_of(model_type) or "AutoModel").from_config(config)
    model = model.float().eval().requires_grad_(False)
    _randomise(model, torch.Generator().manual_seed(seed))
    return model


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a config with every size shrunk that a field's name tells."""
    outer, _, text = model_type.partition("+")
    return _tiny(CONFIG_MAPPING[outer], text)


def _tiny(config_class: type[PretrainedConfig], text: str = "") -> PretrainedConfig:
    return config_class(**_sizes(config_class), **_parts(config_class, text))


def _parts(config_class: type[PretrainedConfig], text: str) -> dict[str, Any]:
    nested = dict(NESTED.get(config_class.model_type, {}))
    default = config_class() if config_class.sub_configs else None
    for name, part_class in config_class.sub_configs.items():
        part = getattr(default, name, None)
        if name == "text_config" and text:
            nested[name] = tiny_config(text)
        elif name not in nested and (part is not None or name == "vision_config"):
            nested[name] = _tiny(type(part) if part_class is AutoConfig else part_class)
    return nested


def _sizes(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    if is_dataclass(config_class):
        known = {field.name for field in fields(config_class)}
    else:
        known = set(inspect.signature(config_class.__init__).parameters)
    known -= set(config_class.sub_configs)
    sizes = {name: value for name, value in BY_NAME.items() if name in known}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    sizes |= BY_TYPE.get(config_class.model_type, {})
    return {name: value for name, value in sizes.items() if value is not None}


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Give every weight values that keep the scale of what flows through it.

    Initialisations meant for training make routers indifferent, biases vanish and tokens alike, so
    that errors would not show.
    """
    vectors = (buffer for buffer in model.buffers() if buffer.dim() == 1)
    for value in (*model.parameters(), *vectors):
        if value.is_floating_point() and value.numel():
            value.copy_(_random_like(value, generator))
    for table in model.buffers():
        if table.dtype == torch.int64 and table.dim() == 2 and not table.any():
            order = torch.rand(len(table), EXPERTS, generator=generator).argsort(-1)
            table.copy_(order[:, : table.shape[1]])  # experts by token id, each at most once


def _random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator)
    if value.dim() >= 2:
        inputs = value.shape[-1] if value.dim() == 3 else value[0].numel()
        return noise / math.sqrt(inputs)
    if not torch.isfinite(value).all() or value.abs().max() > 1e4:
        return 0.1 * noise
    constant = bool((value == value[0]).all())
    return value + 0.1 * noise if constant else value
