"""Rows sorted by expert, then grouped GEMMs over all experts (``_grouped_mm``, its fallback op)."""

from collections import defaultdict

import torch
from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, Gemm

GROUPED_MM_OPS = frozenset({"aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"})
SORT_OPS = frozenset({torch.ops.aten.sort.default, torch.ops.aten.sort.stable})


class GroupedMM(Pattern):
    """``grouped_mm(x[perm // K], weight, offsets)``, offsets counted from sorted choices."""

    name = "grouped_mm"

    def find(self, graph: Graph) -> list[Candidate]:
        """Group the grouped GEMMs over stacked parameters by the sort their offsets come from."""
        by_sort: dict[Node, list[Gemm]] = defaultdict(list)
        for node in graph.nodes:
            if str(node.target) not in GROUPED_MM_OPS:
                continue
            rows, weight = node.args[0], g.stacked_weight(node.args[1])
            offsets = node.args[2] if len(node.args) > 2 else node.kwargs.get("offs")
            sort = _sort_behind(offsets)
            if weight is not None and sort is not None:
                by_sort[sort].append(Gemm.of(node, rows, weight))
        return [
            Candidate(self.name, tuple(gemms), index_source=sort.all_input_nodes[0], root=sort)
            for sort, gemms in by_sort.items()
        ]


def _sort_behind(offsets: Node | None) -> Node | None:
    node = offsets
    while node is not None and node.target not in SORT_OPS:
        node = node.all_input_nodes[0] if node.all_input_nodes else None
    return node
