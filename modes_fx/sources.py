"""Which tokens an MoE layer sees: the call's, a decoder's own, or a tower's of one modality.

transformers models say through ``get_encoder`` which of their modules these are.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from modes_fx.vocabulary import Modality

TOWERS = (("image", Modality.VISION), ("audio", Modality.AUDIO))
"""What ``get_encoder`` is asked for, and the modality of everything inside of it."""


def find_decoder_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the layers of an encoder-decoder that see its ``decoder_input_ids``.

    Args:
        model: a transformers model.
        layers: the modules that own experts, by path.
    """
    if "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        return set()
    whole: Any = model
    return set(layers) - _inside(whole.get_encoder(), layers)


def find_tower_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Modality]:
    """Return the layers that see features of one modality only, as those of a vision tower.

    Args:
        model: a transformers model, or any other, which has no towers.
        layers: the modules that own experts, by path.
    """
    get_encoder = getattr(model, "get_encoder", None)
    if get_encoder is None or "modality" not in inspect.signature(get_encoder).parameters:
        return {}
    towers = [(get_encoder(modality=name), modality) for name, modality in TOWERS]
    return {
        path: modality
        for tower, modality in towers
        if tower is not None and not _reads_tokens(tower, model)
        for path in _inside(tower, layers)
    }


def _reads_tokens(tower: nn.Module, model: nn.Module) -> bool:
    """Return whether a model without such a tower has named a part that reads tokens instead."""
    whole: Any = model
    try:
        embeddings = whole.get_input_embeddings()
    except NotImplementedError:  # it does not say where tokens enter
        return True
    return tower is whole.get_encoder() or any(part is embeddings for part in tower.modules())


def _inside(module: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    inner = set(module.modules())
    return {path for path, layer in layers.items() if layer in inner}
