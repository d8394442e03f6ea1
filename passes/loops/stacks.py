"""Which weights of a module belong to which expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from modes_fx.passes import graph as g
from modes_fx.passes.loops.trace import Trace

aten = torch.ops.aten


@dataclass(frozen=True)
class SharedStack:
    """One parameter that holds a weight of every expert.

    Attributes:
        name: of the parameter in the module.
        shape: ``[E, ...]``, how the parameter is viewed.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.shape[0]

    def part(self, module: nn.Module, expert: int) -> Tensor:
        """Return the weight of one expert, to be changed in place."""
        return module.get_parameter(self.name).view(self.shape)[expert]


@dataclass(frozen=True)
class SeparateStack:
    """One parameter of each expert.

    Attributes:
        names: of the parameters in the module, by expert.
    """

    names: tuple[str, ...]

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.names)

    def part(self, module: nn.Module, expert: int) -> Tensor:
        """Return the weight of one expert, to be changed in place."""
        return module.get_parameter(self.names[expert])


Stack = SharedStack | SeparateStack


class ExpertWeight(NamedTuple):
    """A weight of one expert, as a node of a trace reads it.

    Attributes:
        stack: where the same weight of every expert is.
        expert: whose it is.
        transposed: whether the node is its transpose.
    """

    stack: Stack
    expert: int
    transposed: bool = False


def expert_weights(trace: Trace, module: nn.Module) -> dict[Node, ExpertWeight]:
    """Return the nodes of a trace that are a weight of one expert."""
    names = {
        id(tensor): name for name, tensor in (*module.named_buffers(), *module.named_parameters())
    }
    separate = _separate_stacks(module)
    found: dict[Node, ExpertWeight] = {}
    for node in trace.graph.nodes:
        if node.op == "get_attr":
            name = names.get(id(trace.weights[node]), "")
            if name in separate:
                found[node] = separate[name]
        elif node.op == "call_function":
            weight = _same_weight(node, found) or _part(node, trace, names)
            if weight is not None:
                found[node] = weight
    return found


def may_hold_experts(module: nn.Module) -> bool:
    """Return whether a module's weights could be those of experts: stacked, or of like children."""
    matrices = [p for p in module.parameters() if p.dim() >= 2 and p.is_floating_point()]
    stacked = [p for p in matrices if p.dim() == 3]
    alike = len(matrices) >= 2 and len({p.shape[0] for p in matrices}) == 1
    return len(stacked) >= 2 or alike or bool(_separate_stacks(module))


def hidden_sizes(module: nn.Module) -> list[int]:
    """Return the sizes that H may have: those that every expert matrix has."""
    separate = _separate_stacks(module)
    parameters = [p for name, p in module.named_parameters() if not separate or name in separate]
    rank = max((p.dim() for p in parameters), default=0)
    sizes = [set(p.shape[-2:]) for p in parameters if p.dim() == rank >= 2]
    return sorted(set.intersection(*sizes)) if sizes else []


def has_router(module: nn.Module) -> bool:
    """Return whether a module has, besides experts, a matrix with a row or column for each."""
    separate = _separate_stacks(module)
    others = [p for name, p in module.named_parameters() if p.dim() == 2 and name not in separate]
    counts = {weight.stack.num_experts for weight in separate.values()}
    counts |= {p.shape[0] for p in module.parameters() if p.dim() == 3}
    tall = _tall_rows(module)
    return any(n in p.shape for p in others for n in counts) or any(
        rows % p.shape[0] == 0 for p in others for rows in tall if 1 < p.shape[0] < rows
    )


def _tall_rows(module: nn.Module) -> set[int]:
    """Return the numbers of rows that two or more matrices have which no ``Linear`` owns."""
    owners = (m for m in module.modules() if not isinstance(m, nn.Linear | nn.Embedding))
    rows = [p.shape[0] for m in owners for p in m.parameters(recurse=False) if p.dim() == 2]
    return {n for n in rows if rows.count(n) >= 2}


def guess_num_experts(module: nn.Module) -> int:
    """Return how many experts a module seems to hold; at least 2."""
    separate = [weight.stack.num_experts for weight in _separate_stacks(module).values()]
    stacks = [p.shape[0] for p in module.parameters() if p.dim() == 3]
    return max(2, min(separate or stacks or [2]))


def stacked(stack: Stack, module: nn.Module) -> Tensor:
    """Return the weights of all experts, ``[E, ...]``.

    A view of the parameter where there is one; else a copy of each expert's.
    """
    if isinstance(stack, SharedStack):
        return module.get_parameter(stack.name).view(stack.shape)
    return torch.stack([module.get_parameter(name).detach() for name in stack.names])


def _separate_stacks(module: nn.Module) -> dict[str, ExpertWeight]:
    """Return the parameters of children that are alike, such as a list of experts, by name."""
    found: dict[str, ExpertWeight] = {}
    for path, container in module.named_modules():
        children = [
            (name, dict(child.named_parameters())) for name, child in container.named_children()
        ]
        children = [(name, parameters) for name, parameters in children if parameters]
        shapes = [
            {k: (p.shape, p.dtype) for k, p in parameters.items()} for _, parameters in children
        ]
        if len(children) < 2 or any(shape != shapes[0] for shape in shapes):
            continue
        prefix = f"{path}." if path else ""
        for parameter in shapes[0]:
            names = tuple(f"{prefix}{name}.{parameter}" for name, _ in children)
            for expert, name in enumerate(names):
                found.setdefault(name, ExpertWeight(SeparateStack(names), expert))
    return found


def _same_weight(node: Node, found: Mapping[Node, ExpertWeight]) -> ExpertWeight | None:
    """Return what a node is that only transposes, casts or drops unit dimensions of a weight."""
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    if source not in found:
        return None
    before, after = g.shape(source) or (), g.shape(node) or ()
    if node.target in g.TRANSPOSE_OPS:
        swaps = g.swaps_last_two(node, len(before))
        return found[source]._replace(transposed=found[source].transposed ^ swaps)
    casts = node.target is aten._to_copy.default
    if casts or [n for n in before if n > 1] == [n for n in after if n > 1]:
        squeezes = node.target in (aten.select.int, aten.slice.Tensor) or node.target in g.VIEW_OPS
        return found[source] if casts or squeezes else None
    return None


def _part(node: Node, trace: Trace, names: Mapping[int, str]) -> ExpertWeight | None:
    """Return which expert's weight a node cuts out of a parameter that holds all of them."""
    args: Any = node.args
    if node.target is aten.select.int and args[1] == 0:
        return _of_stack(args[0], args[2], trace, names)
    if node.target is aten.index.Tensor and len(args[1]) == 1:
        chosen = args[1][0].meta["val"]
        if isinstance(chosen, Tensor) and chosen.numel() == 1 and chosen.dtype == torch.int64:
            return _of_stack(args[0], int(chosen), trace, names)
    if node.target is aten.slice.Tensor and len(args) == 4 and args[1] == 0:
        return _of_rows(args[0], args[2], node, trace, names)
    if node.target is getitem and isinstance(args[0], Node):
        parts, number = args
        if parts.target is aten.unbind.int and (len(parts.args) < 2 or parts.args[1] == 0):
            return _of_stack(parts.args[0], number, trace, names)
        if parts.target in (aten.split.Tensor, aten.split_with_sizes.default):
            rows = (g.shape(node) or (0,))[0]
            if len(parts.args) < 3 or parts.args[2] == 0:
                return _of_rows(parts.args[0], number * rows, node, trace, names)
    return None


def _of_stack(
    source: Node, expert: int, trace: Trace, names: Mapping[int, str]
) -> ExpertWeight | None:
    transposed = False
    while source.target in g.TRANSPOSE_OPS or source.target is aten._to_copy.default:
        transposed ^= g.swaps_last_two(source, len(g.shape(source) or ()))
        source = source.all_input_nodes[0]
    shape, origin = g.shape(source) or (), source
    while origin.target in g.VIEW_OPS:
        origin = origin.all_input_nodes[0]
    name = names.get(id(trace.weights.get(origin)))
    if name is None or len(shape) not in (2, 3) or shape[0] < 2:
        return None
    return ExpertWeight(SharedStack(name, shape), expert % shape[0], transposed)


def _of_rows(
    source: Node, start: int, node: Node, trace: Trace, names: Mapping[int, str]
) -> ExpertWeight | None:
    """Return the expert whose rows begin at ``start``, where all have equally many."""
    name = names.get(id(trace.weights.get(source)))
    whole, part = g.shape(source) or (), g.shape(node) or ()
    if name is None or len(whole) != 2 or len(part) != 2 or not 0 < part[0] < whole[0]:
        return None
    if whole[0] % part[0] or start % part[0] or prod(part[1:]) != prod(whole[1:]):
        return None
    return ExpertWeight(SharedStack(name, (whole[0] // part[0], *part)), start // part[0])
