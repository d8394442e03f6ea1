"""Experts of intermediate size 1, kept as rows of two tables ``[E, H]`` and looked up by token.

``sum_k w[t, k] * act(down[index[t, k]] . x[t]) * up[index[t, k]]``, the products and the sum over K
as ``bmm``. No matrix is multiplied, so a body of products of rows says all of it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.lift import Lifter
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, Gemm, NoMatchError

aten = torch.ops.aten

# T tokens, K experts per token, E experts, H hidden size.


class TableLifter(Lifter):
    """Lifts rows ``[T, K, .]``, some of them looked up in tables."""

    def _leaf(self, node: Node) -> str | None:
        if node.target is aten.embedding.default:
            return self._param(node.all_input_nodes[0], per_expert=True)
        if node.target is aten.bmm.default and node in self._in_pairs:
            left, right = node.all_input_nodes
            if _weighted_sum(node) in self._gemms:
                return self._step("aten.mul.Tensor", (self._value(left), self._value(right)))
            if _dot(node) in self._gemms:
                return self._inner_product(left, right)
        return super()._leaf(node)

    def _inner_product(self, rows: Node, x: Node) -> str:
        # A bmm multiplies and adds in float32, whatever it reads.
        wide = self._step("aten._to_copy.default", (self._value(x),), {"dtype": "float32"})
        product = self._step("aten.mul.Tensor", (wide, self._value(rows)))
        total = self._step("aten.sum.dim_IntList", (product, [-1], True))
        dtype = str(g.dtype(x)).removeprefix("torch.")
        return self._step("aten._to_copy.default", (total,), {"dtype": dtype})


class Tables(Pattern):
    """``embedding(down, index)`` times x, activated, weighted, times ``embedding(up, index)``."""

    name = "tables"
    lifter = TableLifter

    def find(self, graph: Graph) -> list[Candidate]:
        """Group the lookups that share a choice and end in a sum over what was looked up."""
        by_choice: dict[Node, list[Gemm]] = defaultdict(list)
        for node in graph.find_nodes(op="call_function", target=aten.embedding.default):
            table, choice = node.args[:2]
            if g.is_weight(table) and len(g.shape(choice) or ()) == 2:
                by_choice[choice].append(Gemm(node, choice, table, transposed=False))
        return [
            Candidate(self.name, tuple(lookups), index_source=choice, root=choice)
            for choice, lookups in by_choice.items()
            if len(lookups) > 1 and _products(lookups, _weighted_sum)
        ]

    def combine(self, candidate: Candidate, tokens: int, top_k: int) -> Node:
        """Return the sum over K as ``[T, H]``, and give x that shape where a product reads it.

        Raises:
            NoMatchError: there are several sums, or none of the products reads x.
        """
        sums = _products(candidate.gemms, _weighted_sum)
        dots = _products(candidate.gemms, _dot)
        if len(sums) != 1 or not dots:
            raise NoMatchError(
                f"{len(dots)} products of a looked-up row with x and {len(sums)} sums over what "
                "was looked up were found, not one of each",
                candidate.root,
            )
        for dot in dots:
            column = dot.all_input_nodes[1]
            dot.replace_input_with(column, _without_unit_dim(column, 2)[1])
        flat, restored = _without_unit_dim(sums[0], 1)
        sums[0].replace_all_uses_with(restored, lambda user: user is not flat)
        return flat


def _products(lookups: Sequence[Gemm], wanted: Callable[[Node], Node | None]) -> list[Node]:
    looked_up = {lookup.node for lookup in lookups}
    graph = lookups[0].node.graph
    bmms = graph.find_nodes(op="call_function", target=aten.bmm.default)
    return [node for node in bmms if wanted(node) in looked_up]


def _dot(node: Node) -> Node | None:
    """Return what is looked up in ``bmm(rows [T, K, H], x [T, H, 1])``."""
    rows, x = node.all_input_nodes
    return g.through_views(rows) if (g.shape(x) or ())[-1] == 1 else None


def _weighted_sum(node: Node) -> Node | None:
    """Return what is looked up in ``bmm(coefficients [T, 1, K], rows [T, K, H])``."""
    coefficients, rows = node.all_input_nodes
    return g.through_views(rows) if (g.shape(coefficients) or ())[-2] == 1 else None


def _without_unit_dim(node: Node, dim: int) -> tuple[Node, Node]:
    """Insert and return a node without a dimension of size 1, and with it again."""
    with node.graph.inserting_after(node):
        flat = node.graph.call_function(aten.squeeze.dim, (node, dim))
    with node.graph.inserting_after(flat):
        restored = node.graph.call_function(aten.unsqueeze.default, (flat, dim))
    flat.meta["val"] = node.meta["val"].squeeze(dim)
    restored.meta["val"] = node.meta["val"]
    return flat, restored
