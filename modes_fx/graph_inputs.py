"""What the inputs of a captured graph are: their values, names and which are the model's own.

Dynamo's graph takes a tensor subclass as one input; the functional graph made from it takes its
parts. A parameter that is sharded over devices is there as the part of this process.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from modes_fx.hooks import LAYER_PATH


@dataclass(frozen=True)
class GraphInput:
    """One input of a functional graph.

    Attributes:
        value: its real value.
        name: its qualified name where it is a parameter or a buffer; empty where not.
        marks: what Dynamo notes of the model's own tensors; None for other inputs.
    """

    value: Any
    name: str
    marks: Any


def graph_inputs(module: GraphModule, values: Sequence[Any]) -> list[GraphInput]:
    """Return the inputs of the functional graph that is made from a captured one, in order.

    Args:
        module: the graph Dynamo captured.
        values: its real inputs.
    """
    placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
    found = []
    for node, value in zip(placeholders, values, strict=True):
        argument = node.meta.get("grapharg")
        source = argument.source.name if argument is not None and argument.source else ""
        layer = getattr(value, LAYER_PATH, None)
        name, marks = f"{layer}.theta" if layer else _dotted(source), node.meta.get("tensor_dict")
        found += [GraphInput(part, name, marks) for part in _parts(value)]
    return found


def pair_inputs(traced: GraphModule, given: Sequence[GraphInput]) -> dict[Node, GraphInput] | None:
    """Return what each input of the traced graph stands for.

    Where inputs share memory and one is written to, as in some caches, tracing puts one input in
    their place, in front of all others, and numbers before tensors. None where this does not
    explain the inputs there are.
    """
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(placeholders) == len(given):
        return dict(zip(placeholders, given, strict=True))
    memory = {
        number: item.value.untyped_storage()._cdata
        for number, item in enumerate(given)
        if isinstance(item.value, torch.Tensor)
    }
    users = Counter(memory.values())
    merged = sum(count > 1 for count in users.values())
    numbers = [number for number in range(len(given)) if number not in memory]
    tensors = [number for number, place in memory.items() if users[place] == 1]
    alone = [given[number] for number in (*numbers, *tensors)]
    if len(placeholders) != merged + len(alone):
        return None
    pairs = dict(zip(placeholders[merged:], alone, strict=True))
    return pairs if all(_is_alike(node, item.value) for node, item in pairs.items()) else None


def _is_alike(node: Node, value: Any) -> bool:
    traced = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return not isinstance(traced, torch.Tensor)
    return (
        isinstance(traced, torch.Tensor)
        and traced.dtype == value.dtype
        and traced.dim() == value.dim()
    )


def _parts(value: Any) -> list[Any]:
    if not is_traceable_wrapper_subclass(value):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(value, name))]


def _dotted(source: str) -> str:
    """Turn ``L['self']._modules['a']._parameters['b']`` into ``a.b``."""
    parts = []
    for piece in source.replace("]", "").split("[")[1:]:
        quoted = piece.split(".")[0]
        parts.append(quoted.strip("'\""))
    return ".".join(parts[1:])
