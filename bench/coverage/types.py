"""Find the mixture-of-experts types of the installed transformers by inspection.

The source of each model is read, not imported. A type has experts where its modeling source
decorates a class with ``use_experts_implementation``, or reads a number of experts from its config.
It is measured where an auto class gives it a head that scores tokens; its other configs (vision
towers, inner text models) are parts of such a type. Types without experts of their own whose
default text model has them are found through their default config, and types that take any text
model are tried with one (see ``COMBINATIONS``).
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING,
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

HEADS = {
    "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLASSIFICATION": "AutoModelForTokenClassification",
    "MULTIMODAL_LM": "AutoModelForMultimodalLM",
}
"""The auto classes that score tokens, by the name of their mapping; the first that fits is used."""

COMBINATIONS = (
    "internvl+qwen3_moe",
    "internvl+gpt_oss",
    "lfm2_vl+lfm2_moe",
    "mistral3+mixtral",
)
"""Multimodal types that take any text model, each with a mixture-of-experts type as that."""

_EXPERTS = re.compile(r"@use_experts_implementation|config\.\w*num\w*_experts\b|config\.n_routed_")


def moe_types() -> list[str]:
    """Return every type to measure, sorted; combinations are written ``outer+inner``."""
    own = {name for name in CONFIG_MAPPING_NAMES if _has_own_experts(name)}
    wrapping = {name for name in CONFIG_MAPPING_NAMES if name not in own and _wraps(name, own)}
    return sorted(name for name in own | wrapping if head_of(name)) + list(COMBINATIONS)


def head_of(model_type: str) -> str | None:
    """Return the auto class that builds a type for scoring tokens; None where there is none."""
    outer = model_type.partition("+")[0]
    for mapping, auto_class in HEADS.items():
        if outer in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES"):
            return auto_class
    return None


@cache
def modeling_source(model_type: str) -> str:
    """Return the modeling source of a type, all files of it."""
    folder = Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)
    return "\n".join(path.read_text("utf-8") for path in sorted(folder.glob("modeling_*.py")))


def _has_own_experts(model_type: str) -> bool:
    return _EXPERTS.search(modeling_source(model_type)) is not None


def _wraps(model_type: str, types_with_experts: set[str]) -> bool:
    return head_of(model_type) is not None and any(
        inner in types_with_experts for inner in _default_parts(model_type)
    )


def _default_parts(model_type: str) -> Iterator[str]:
    config_class = CONFIG_MAPPING[model_type]
    for name, part_class in config_class.sub_configs.items():
        if part_class is not AutoConfig:
            yield part_class.model_type
        elif (part := getattr(_default(config_class), name, None)) is not None:
            yield part.model_type


def _default(config_class: type[PretrainedConfig]) -> PretrainedConfig | None:
    try:
        return config_class()
    except (ValueError, TypeError, AttributeError, ImportError, StrictDataclassError):
        return None  # a type that has no default has no default text model either
