"""The form that ``attach`` brings expert loops into: a call of ``modes_fx::experts``."""

from typing import Any

import torch
from torch.fx import Graph, Node

from modes_fx.kernels.epilogue import MATMUL, Body
from modes_fx.passes import graph as g
from modes_fx.passes.loops.call import NO_EXPERT
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, Gemm, Region


class LoopOp(Pattern):
    """A loop that was recognised and proved when the model was attached; it lacks only the gate."""

    name = "loop"
    proved = True

    def find(self, graph: Graph) -> list[Candidate]:
        """Return the experts that are one op already."""
        found = graph.find_nodes(op="call_function", target=torch.ops.modes_fx.experts.default)
        candidates = []
        for node in found:
            x, index, _, params, body, _ = node.args
            gemms = tuple(
                Gemm(node, x, _source(params[int(step.args[1][1:])]), step.args[2])
                for step in Body.from_json(body).steps
                if step.op == MATMUL
            )
            candidates.append(Candidate(self.name, gemms, index_source=index, root=node))
        return candidates

    def check(self, candidate: Candidate) -> Region:
        """Read the op's arguments."""
        node = candidate.root
        arguments: Any = node.args
        x, index, weight, params, body, num_experts = arguments
        return Region(
            form=self.name,
            gemms=candidate.gemms,
            x=x,
            index=index,
            weight=weight,
            out=node,
            params=tuple(params),
            body=Body.from_json(body),
            num_experts=num_experts,
            skipped_id=NO_EXPERT,
        )


def _source(param: Node) -> Node:
    """Return the graph's input behind a parameter, where it is that and not a part of it."""
    source = g.through_views(param)
    return source if g.shape(source) == g.shape(param) else param
