"""What a block gives besides its routed experts: the shared experts, the residual, nothing.

Everything between an expert's rows and the block's output is linear in them (scatter, cat, weigh,
sum), so setting the rows to 0 and simplifying leaves the rest, free of the loop.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Node

from modes_fx.passes import graph as g
from modes_fx.passes.region import NoMatchError
from modes_fx.passes.rows import functional_name

aten = torch.ops.aten

ZEROS = frozenset(
    f"aten.{name}"
    for name in (
        *("zeros.default", "zeros_like.default", "new_zeros.default"),
        # What nobody writes to but an expert, nobody reads either.
        *("empty.memory_format", "empty_like.default", "new_empty.default"),
    )
)

PASS_ON_ZERO = frozenset(
    f"aten.{name}"
    for name in (
        *("index.Tensor", "index_select.default", "gather.default", "select.int", "slice.Tensor"),
        *("split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default"),
        *("sum.default", "sum.dim_IntList", "mean.dim", "neg.default", "_to_copy.default"),
        *("div.Tensor", "div.Scalar", "mul.Scalar", "masked_fill.Scalar"),
    )
)
"""Operations that give 0 where their first argument is 0; a fill other than 0 is told apart."""

WRITES_INTO = {
    "aten.index_add.default": 3,
    "aten.scatter_add.default": 3,
    "aten.index_put.default": 2,
    "aten.scatter.src": 3,
    "aten.index_copy.default": 3,
    "aten.copy.default": 1,
}
"""Operations that write into their first argument, and where the argument is that they write."""


def rest_of(output: Node, rows: Collection[Node]) -> Node | None:
    """Return what computes an output without the experts' rows; None where nothing is left.

    The graph is simplified in place.

    Raises:
        NoMatchError: the output is not linear in the rows.
    """
    zero = set(rows)
    for node in list(output.graph.nodes):
        if node in zero or node.op != "call_function":
            continue
        if _is_zero(node, zero):
            zero.add(node)
        elif (same := _same_as(node, zero)) is not None:
            node.replace_all_uses_with(same)
            output = same if node is output else output
    if output in zero:
        return None
    behind = g.descendants(rows)
    if output in behind:
        raise NoMatchError("its output is not the sum of what its experts give and of the rest")
    return output


def _is_zero(node: Node, zero: Collection[Node]) -> bool:
    name, args = functional_name(node), node.args
    if name in ZEROS or 0 in (g.shape(node) or ()):
        return True
    if name == "aten.cat.default":
        return all(part in zero for part in args[0])  # type: ignore[union-attr]
    if name in ("aten.add.Tensor", "aten.sub.Tensor"):
        return all(arg in zero for arg in args[:2])
    if name in WRITES_INTO and _written(node, name) in zero:
        return args[0] in zero
    if name in ("aten.mul.Tensor", "aten.mm.default", "aten.bmm.default"):
        return any(arg in zero for arg in args)
    if name == "aten.masked_fill.Scalar" and args[2] != 0:
        return False
    passes_on = name in PASS_ON_ZERO or node.target in g.VIEW_OPS or node.target in g.TRANSPOSE_OPS
    getitem = not isinstance(node.target, torch._ops.OpOverload)
    return (passes_on or getitem) and args[0] in zero


def _same_as(node: Node, zero: Collection[Node]) -> Node | None:
    """Return the argument that a node equals because it adds 0 to it."""
    name, args = functional_name(node), node.args
    accumulates = name in ("aten.index_add.default", "aten.scatter_add.default") or (
        name == "aten.index_put.default" and len(args) > 3 and args[3] is True
    )
    if accumulates and _written(node, name) in zero:
        return args[0]  # type: ignore[return-value]
    if name == "aten.add.Tensor" and not node.kwargs:
        for one, other in ((args[0], args[1]), (args[1], args[0])):
            if one in zero and isinstance(other, Node):
                return _expanded(other, node)
    return None


def _expanded(other: Node, like: Node) -> Node:
    shape = g.shape(like)
    if g.shape(other) == shape:
        return other
    with like.graph.inserting_before(like):
        expanded = like.graph.call_function(aten.expand.default, (other, list(shape or ())))
    expanded.meta["val"] = other.meta["val"].expand(shape)
    return expanded


def _written(node: Node, name: str) -> Any:
    position = WRITES_INTO[name]
    return node.args[position] if len(node.args) > position else None
