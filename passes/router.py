"""Where a region's combine weights come from: the router, named for reports.

Nothing depends on it: a router is never matched, it stays as the model wrote it.
"""

from collections.abc import Mapping
from operator import getitem
from typing import NamedTuple

import torch
from torch.fx import Node

from modes_fx import ops as ops  # registers the ops
from modes_fx.passes import graph as g

aten = torch.ops.aten

PROJECTIONS = frozenset(
    {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.linear.default}
)
"""Products of activations with a matrix: where walking back from the combine weights stops."""

MAX_OPS = 12
"""A chain with more operations than this is shortened, for reports are read by people."""

_SILENT = (
    g.VIEW_OPS
    | g.TRANSPOSE_OPS
    | {getitem, aten._to_copy.default, torch.ops.modes_fx.marker.default}
)


class RouterOrigin(NamedTuple):
    """Where the choice of experts and the combine weights come from.

    Attributes:
        ops: the operations from the combine weights back to the router's projection, as
            ``topk <- softmax <- mm``; empty where the weights are an input of the graph.
        weight: the qualified name of the projection's matrix; empty where there is none.
    """

    ops: str = ""
    weight: str = ""


def router_origin(index: Node, weight: Node, names: Mapping[Node, str]) -> RouterOrigin:
    """Walk back from a region's index and combine weights to the projection behind them.

    Args:
        index: the region's ``[T, K]`` choice of experts.
        weight: the region's ``[T, K]`` combine weights.
        names: the qualified names of the graph's inputs.
    """
    found = _computed_from(index, weight)
    ops = [_name(node) for node in found if node.target not in _SILENT]
    shown = [*ops[: MAX_OPS - 1], "...", ops[-1]] if len(ops) > MAX_OPS else ops
    matrices = [names.get(matrix, "") for node in found for matrix in _matrices(node)]
    return RouterOrigin(" <- ".join(shown), next(filter(None, matrices), ""))


def _computed_from(index: Node, weight: Node) -> list[Node]:
    """Return what computes both, last first, no further back than the nearest projections."""
    found: set[Node] = set()
    pending = [node for node in (weight, index) if not g.is_input(node)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            if node.target not in PROJECTIONS:
                pending += [source for source in node.all_input_nodes if not g.is_input(source)]
    return [node for node in reversed(weight.graph.nodes) if node in found]


def _matrices(node: Node) -> list[Node]:
    if node.target not in PROJECTIONS:
        return []
    sources = [_through_silent(source) for source in node.all_input_nodes]
    return [source for source in sources if g.is_weight(source) and len(g.shape(source) or ()) > 1]


def _through_silent(node: Node) -> Node:
    while node.target in _SILENT:
        node = node.all_input_nodes[0]
    return node


def _name(node: Node) -> str:
    return str(node.target).split(".")[1].strip("_") if "." in str(node.target) else node.name
