"""A hash of a model's architecture: tells whether a policy was calibrated for this model."""

import hashlib
import json
from typing import Any, Protocol

_SWITCHES = frozenset(
    {
        "architectures",
        "attn_implementation",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "experts_implementation",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class Config(Protocol):
    """What is needed of a transformers configuration."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain data."""


def config_hash(config: Config) -> str:
    """Hashes what a configuration says about the architecture.

    How the model is run or labelled (dtype, attention and experts implementation, caching, where
    it was loaded from, which library version wrote it) does not enter, so that saving, loading or
    casting a model keeps its hash.

    Args:
        config: The ``config`` of a transformers model.

    Returns:
        The sha256 digest of a canonical JSON, 64 hexadecimal digits.
    """
    canonical = json.dumps(
        _architecture(config.to_dict()), sort_keys=True, separators=(",", ":"), default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _architecture(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _architecture(item)
            for key, item in value.items()
            if key not in _SWITCHES and not str(key).startswith("_")
        }
    if isinstance(value, list | tuple):
        return [_architecture(item) for item in value]
    return value
