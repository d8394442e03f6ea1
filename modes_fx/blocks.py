"""Capture blocks that hold several expert modules each by itself, with what picks their tokens.

A block with experts of its own for each modality gives each the rows of a mask. How many these are
depends on data, where Dynamo ends a graph by default, and then no graph shows which rows they are.
It goes on where it is told to, but for a whole model that fails on other code, such as image
towers; so it is told for these blocks alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo_config

from modes_fx.forward import ReplacedForward


def find_blocks(model: nn.Module, layers: Iterable[str]) -> list[nn.Module]:
    """Return the blocks of repeated layers that hold two or more of the expert modules.

    Args:
        model: the model.
        layers: the paths of its expert modules.
    """
    around = {path: list(_within_layer(model, path)) for path in layers}
    held = Counter(block for blocks in around.values() for block in blocks)
    innermost = (next((b for b in blocks if held[b] > 1), None) for blocks in around.values())
    return [model.get_submodule(path) for path in dict.fromkeys(innermost) if path is not None]


def _within_layer(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the modules around one, the innermost first, as far as the list of layers they are in.

    Nothing where they are in no list.
    """
    around: list[str] = []
    while path := path.rpartition(".")[0]:
        if isinstance(model.get_submodule(path), nn.ModuleList):
            yield from around
            return
        around.append(path)


def capture_apart(block: nn.Module) -> ReplacedForward:
    """Have a block captured by itself, picks included, until the result is removed."""
    forward = block.forward

    def capture_picks(*args: Any, **kwargs: Any) -> Any:
        with dynamo_config.patch(capture_dynamic_output_shape_ops=True):
            return forward(*args, **kwargs)

    reason = "a block that picks tokens for its experts is captured by itself"
    apart = torch.compiler.disable(capture_picks, recursive=False, reason=reason)
    return ReplacedForward(block, apart)
