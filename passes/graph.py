"""Small questions about the nodes of a functional ATen graph."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node

from modes_fx import ops as ops  # registers the marker
from modes_fx.passes.sizes import value_of

aten = torch.ops.aten
MARKER = torch.ops.modes_fx.marker.default

VIEW_OPS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.expand.default,
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
    }
)
"""Ops that change how values are laid out, not what they are."""

TRANSPOSE_OPS = frozenset({aten.transpose.int, aten.permute.default, aten.t.default})


def shape(node: Node) -> tuple[int, ...] | None:
    """Return a tensor node's shape, with a number for each size (see ``modes_fx.passes.sizes``).

    None where the node is no tensor.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(value_of(size) for size in value.shape)


def dtype(node: Node) -> torch.dtype | None:
    """Return a tensor node's dtype."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def is_floating(node: Node) -> bool:
    """Return whether a node is a floating-point tensor."""
    kind = dtype(node)
    return kind is not None and kind.is_floating_point


def is_input(node: Node) -> bool:
    """Return whether a node is a parameter, a buffer or another input of the graph."""
    return node.op in ("placeholder", "get_attr")


def is_weight(node: Node) -> bool:
    """Return whether a node is a parameter or a buffer of the model, as capture marked it."""
    marks = node.meta.get("tensor_dict") or {}
    return node.op == "get_attr" or "_dynamo_static_input_type" in marks


def through_views(node: Node, wanted: tuple[int, ...] | None = None) -> Node:
    """Follow views backwards, up to the first node of the wanted shape where one is given."""
    while node.target in VIEW_OPS and (wanted is None or shape(node) != wanted):
        node = node.all_input_nodes[0]
    return node


def stacked_weight(node: Node) -> tuple[Node, bool] | None:
    """Return the 3-D weight behind a GEMM operand, and whether its matrices are transposed.

    None where the operand is something else.
    """
    transposed = False
    while node.target in TRANSPOSE_OPS or node.target in VIEW_OPS:
        transposed ^= len(shape(node) or ()) == 3 and swaps_last_two(node, 3)
        node = node.all_input_nodes[0]
    dimensions = shape(node)
    if is_weight(node) and dimensions is not None and len(dimensions) == 3:
        return node, transposed
    return None


def descendants(roots: Iterable[Node]) -> set[Node]:
    """Return the roots and everything computed from them."""
    found = set(roots)
    pending = list(found)
    while pending:
        for user in pending.pop().users:
            if user not in found:
                found.add(user)
                pending.append(user)
    return found


def between(end: Node, boundary: Iterable[Node]) -> list[Node]:
    """Return, in order, what computes ``end`` from the boundary and the graph's inputs."""
    stop, found, pending = set(boundary), {end}, [end]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found and source not in stop and not is_input(source):
                found.add(source)
                pending.append(source)
    return [node for node in end.graph.nodes if node in found]


def depends_on_weights_only(node: Node) -> bool:
    """Return whether a value is computed from parameters and buffers, and from nothing else."""
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if is_input(current) and not is_weight(current):
            return False
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return any(map(is_weight, seen))


def swaps_last_two(node: Node, rank: int) -> bool:
    """Return whether a node transposes the matrices of a tensor of ``rank`` dimensions."""
    if node.target is aten.t.default:
        return rank == 2
    dims: Any = node.args[1:]
    last = [rank - 2, rank - 1]
    if node.target is aten.transpose.int:
        return sorted(dim % rank for dim in dims) == last
    if node.target is aten.permute.default:
        return [dim % rank for dim in dims[0]] == [*range(rank - 2), *reversed(last)]
    return False
