"""Every token through every expert, weighted by 0 where it did not choose the expert.

The rows are ``[E, T, .]``, so that each GEMM is one ``bmm`` over the stacked weights as they are.
Rewriting saves what no token asked for, even where nothing is skipped.
"""

from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.lift import Lifter
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, Gemm, NoMatchError, Region
from modes_fx.passes.spread import find_spreads

aten = torch.ops.aten

LAYOUT_OPS = g.VIEW_OPS | g.TRANSPOSE_OPS | {aten.repeat.default}

# T tokens, K experts per token, E experts, H hidden size.


class DenseLifter(Lifter):
    """Lifts rows ``[E, T, .]`` in any layout; the combine weights are the candidate's root."""

    def __init__(self, candidate: Candidate, tokens: int, top_k: int, num_experts: int) -> None:
        """Prepare to lift from a candidate of ``tokens`` x ``num_experts`` rows."""
        super().__init__(candidate, tokens, top_k, num_experts)
        self._dense = candidate.root

    def _leaf(self, node: Node) -> str | None:
        if node in self._gemms:
            return self._gemm(node)
        if node.target is g.MARKER:
            return self._value(node.all_input_nodes[0])
        if _behind_layout(node, lambda source: source is self._dense):
            return self._only("weight", self._dense, "w")
        if param := _behind_layout(node, g.is_weight):
            dimensions = g.shape(param) or ()
            return self._param(param, len(dimensions) > 1 and dimensions[0] == self._num_experts)
        if x := _behind_layout(node, lambda source: _is_tokens(source, self._tokens)):
            return self._only("x", x, "x")
        if node.target in g.TRANSPOSE_OPS:
            return self._view(node)
        return None


class DenseBMM(Pattern):
    """``sum_e bmm(f(bmm(x, up)), down)[e]`` with combine weights ``[T, E]``, on input or output."""

    name = "dense_bmm"
    lifter = DenseLifter

    def find(self, graph: Graph) -> list[Candidate]:
        """Group the ``bmm`` over stacked parameters by the sum over experts that they lead to."""
        by_total: dict[Node, list[Gemm]] = defaultdict(list)
        for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
            rows, matrices = node.args
            weight = g.stacked_weight(matrices)
            total = _total(node) if weight is not None else None
            if weight is not None and total is not None:
                by_total[total].append(Gemm.of(node, rows, weight))
        spreads = find_spreads(graph)
        candidates = []
        for total, gemms in by_total.items():
            dense = _combine_weights(total, spreads)
            if dense is not None:
                choice = spreads[dense].choice
                candidates.append(Candidate(self.name, tuple(gemms), choice, root=dense))
        return candidates

    def combine(self, candidate: Candidate, tokens: int, top_k: int) -> Node:
        """Return the sum over all experts."""
        total = _total(candidate.gemms[-1].node)
        assert total is not None
        return total

    def check(self, candidate: Candidate) -> Region:
        """Cut at the combine weights ``[T, E]``, then gather those of the chosen experts.

        Raises:
            NoMatchError: it is not a region that can be rewritten; says why.
        """
        dense = candidate.root
        outside = find_spreads(dense.graph)[dense].outside
        if outside != 0:
            raise NoMatchError(
                f"the combine weights of experts that were not chosen are {outside}, not 0", dense
            )
        region = super().check(candidate)
        index = region.index
        with dense.graph.inserting_after(dense):
            chosen = dense.graph.call_function(aten.gather.default, (dense, 1, index))
        chosen.meta["val"] = aten.gather.default(dense.meta["val"], 1, index.meta["val"])
        return replace(region, weight=chosen, dense=dense)


def _total(gemm: Node) -> Node | None:
    """Return the first sum over all experts that follows a ``bmm`` over their weights."""
    experts = (g.shape(gemm) or (0,))[0]
    reachable = g.descendants([gemm])
    sums = gemm.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    return next((node for node in sums if node in reachable and _sums(node, experts)), None)


def _sums(node: Node, experts: int) -> bool:
    dims: Any = node.args[1]
    before = g.shape(node.all_input_nodes[0]) or ()
    if len(before) != 3 or len(g.shape(node) or ()) != 2:
        return False
    (dim,) = (d % 3 for d in dims)
    return dim < 2 and before[dim] == experts > 1


def _combine_weights(total: Node, spreads: Container[Node]) -> Node | None:
    """Return the matrix ``[T, E]`` spread from a choice of experts that a sum is computed from."""
    tokens = (g.shape(total) or (0,))[0]
    seen, pending = {total}, [total]
    while pending:
        for node in pending.pop().all_input_nodes:
            dense = _behind_layout(node, spreads.__contains__)
            if dense is not None and _is_tokens(dense, tokens):
                return dense
            x = _behind_layout(node, lambda source: _is_tokens(source, tokens))
            if node not in seen and x is None and not g.is_input(node):
                seen.add(node)
                pending.append(node)
    return None


def _is_tokens(node: Node, tokens: int) -> bool:
    dimensions = g.shape(node) or ()
    return g.is_floating(node) and len(dimensions) == 2 and dimensions[0] == tokens


def _behind_layout(node: Node, wanted: Callable[[Node], bool]) -> Node | None:
    """Return the first node of a kind behind operations that only lay values out."""
    while not wanted(node):
        if node.target not in LAYOUT_OPS:
            return None
        node = node.all_input_nodes[0]
    return node
