"""Small questions about the nodes of a functional ATen graph."""

from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Operand(NamedTuple):
    """The experts' operand of a GEMM: ``weight`` ``[E, ., .]``, times ``scale`` if there is one.

    Attributes:
        weight: a parameter, or what is computed from parameters alone.
        transposed: whether the GEMM reads the transpose of its matrices.
        scale: ``[E, N]``, the parameter that integer weights are multiplied with.
        scale_dim: the dimension of the weight that N is.
    """

    weight: Node
    transposed: bool
    scale: Node | None = None
    scale_dim: int = 0


def stacked_weight(node: Node) -> Operand | None:
    """Return the 3-D weight behind a GEMM operand; None where the operand is something else."""
    transposed = False
    stacked: tuple[Node, bool] | None = None
    while True:
        if len(shape(node) or ()) == 3:
            stacked = node, transposed
        if node.target not in TRANSPOSE_OPS and node.target not in VIEW_OPS:
            break
        transposed ^= len(shape(node) or ()) == 3 and swaps_last_two(node, 3)
        node = node.all_input_nodes[0]
    if is_input(node) or stacked is None:
        whole = is_weight(node) and len(shape(node) or ()) == 3
        return Operand(node, transposed) if whole else None
    # What was packed or grouped is stacked matrices only as a whole.
    node, transposed = stacked
    if found := _scaled_integers(node):
        return Operand(found[0], transposed, *found[1:])
    experts = (shape(node) or (0,))[0]
    if is_floating(node) and experts > 1 and depends_on_weights_only(node):
        return Operand(node, transposed)
    return None


def _scaled_integers(node: Node) -> tuple[Node, Node, int] | None:
    """Return weight, scale and its dimension of ``weight.to(float) * scale.unsqueeze(dim)``."""
    if node.target is not aten.mul.Tensor or dtype(node) is torch.float16:
        return None  # sums of unscaled products could exceed what float16 holds
    left, right = node.args
    for cast, spread in ((left, right), (right, left)):
        if not isinstance(cast, Node) or not isinstance(spread, Node):
            return None
        if cast.target is not aten._to_copy.default or spread.target is not aten.unsqueeze.default:
            continue
        weight, scale = cast.all_input_nodes[0], spread.all_input_nodes[0]
        missing: Any = spread.args[1]
        sizes, wanted = shape(weight) or (), list(shape(weight) or ())
        if len(sizes) != 3 or missing % 3 == 0:
            continue
        del wanted[missing % 3]
        integers = is_weight(weight) and dtype(weight) is torch.int8
        if integers and is_weight(scale) and shape(scale) == tuple(wanted):
            return weight, scale, 3 - missing % 3
    return None


def weights_behind(node: Node) -> list[Node]:
    """Return the parameters and buffers that a value is, or is computed from, in order."""
    if is_input(node):
        return [node]
    sources = {source for n in between(node, ()) for source in n.all_input_nodes}
    return [source for source in node.graph.nodes if source in sources and is_input(source)]


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
