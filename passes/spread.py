"""Matrices ``[T, E]`` that hold one and the same value wherever a token did not choose an expert.

Models that run every expert on every token keep their combine weights in such a matrix, 0 for what
was not chosen. That it is 0 there is proved, not assumed: the constant is followed from the scatter
that fills the matrix through every operation applied to it.
"""

from collections.abc import Mapping
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from modes_fx.passes import graph as g

aten = torch.ops.aten

SCATTER_OPS = frozenset({aten.scatter.src, aten.scatter.value, aten.scatter_add.default})
FILL_OPS: dict[Any, int | None] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.zeros.default: None,
    aten.zeros_like.default: None,
    aten.new_zeros.default: None,
    aten.scalar_tensor.default: 0,
}
"""Where a filling operation takes its value; None for 0."""

SORT_OPS: dict[Any, int] = {aten.topk.default: 2, aten.sort.default: 1, aten.sort.stable: 1}
"""Where an operation whose second result is a choice takes the dimension it sorts."""

Scalar = bool | int | float

# T tokens, K experts per token, E experts.


class Spread(NamedTuple):
    """What is known of a matrix ``[T, E]``.

    Attributes:
        choice: ``[T, K]`` int64, the different experts each token chose.
        outside: the value of every other entry.
    """

    choice: Node
    outside: Scalar


def find_spreads(graph: Graph) -> dict[Node, Spread]:
    """Return the matrices of a graph whose value outside a choice of experts is known."""
    found: dict[Node, Spread] = {}
    for node in graph.nodes:
        spread = _scattered(node) if node.target in SCATTER_OPS else _computed(node, found)
        if spread is not None and len(g.shape(node) or ()) == 2:
            found[node] = spread
    return found


def _computed(node: Node, found: Mapping[Node, Spread]) -> Spread | None:
    sources = [source for source in node.all_input_nodes if source in found]
    choices = {found[source].choice for source in sources}
    if len(choices) != 1 or any(g.shape(source) != g.shape(node) for source in sources):
        return None
    known = {source: found[source].outside for source in sources}
    known |= {s: _filled(s) for s in node.all_input_nodes if s.target in FILL_OPS}
    outside = _outside(node, known)
    return None if outside is None else Spread(choices.pop(), outside)


def _scattered(node: Node) -> Spread | None:
    base, dim, index = node.args[:3]
    assert isinstance(base, Node)
    assert isinstance(index, Node)
    if dim not in (1, -1) or base.target not in FILL_OPS or not _is_distinct(index):
        return None
    return Spread(index, _filled(base))


def _filled(node: Node) -> Scalar:
    position = FILL_OPS[node.target]
    value: Any = 0 if position is None else node.args[position]
    return value


def _is_distinct(index: Node) -> bool:
    """Return whether no token chooses an expert twice, which a scatter would count once."""
    if (g.shape(index) or (0, 0))[1] == 1:
        return True
    while index.target is aten.slice.Tensor:
        index = index.all_input_nodes[0]
    source = index.args[0] if index.target is getitem else None
    if not isinstance(source, Node) or source.target not in SORT_OPS:
        return False
    position = SORT_OPS[source.target]
    given = source.args[position] if len(source.args) > position else -1
    return source.kwargs.get("dim", given) in (1, -1) and len(g.shape(index) or ()) == 2


def _outside(node: Node, known: Mapping[Node, Scalar]) -> Scalar | None:
    """Return what an operation makes of values that are known, and others that are not."""
    operation: Any = node.target
    args: list[Any] = [known.get(arg) if isinstance(arg, Node) else arg for arg in node.args]
    if operation is aten._softmax.default:
        return 0 if args[0] == -torch.inf and args[1] in (1, -1) else None
    if operation is aten.mul.Tensor and 0 in args:
        return 0
    if operation is aten.div.Tensor and args[0] == 0:
        return 0
    if operation is aten.where.self and args[0] is not None:
        return args[1] if args[0] else args[2]
    if operation is aten.masked_fill.Scalar and args[1]:
        return args[2]
    if not _is_pointwise(node) or any(source not in known for source in node.all_input_nodes):
        return None
    tensors = (torch.tensor(known[a]) if isinstance(a, Node) else a for a in node.args)
    kwargs = {name: value for name, value in node.kwargs.items() if name == "dtype"}
    value: Scalar = operation(*tensors, **kwargs).item()
    return value if value == value else None


def _is_pointwise(node: Node) -> bool:
    if node.target in (aten._to_copy.default, aten.alias.default, aten.detach.default):
        return True
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
