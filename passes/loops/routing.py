"""Find the routing inside a block: which of the values it computes are x, index and weight."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.fx import Node

from modes_fx.passes import graph as g
from modes_fx.passes.loops.body import Routing, tokens_of
from modes_fx.passes.loops.stacks import ExpertWeight
from modes_fx.passes.loops.trace import Trace


def routings(
    trace: Trace, gemms: Mapping[Node, int], weights: Mapping[Node, ExpertWeight]
) -> Iterator[tuple[tuple[Node, Node, Node], Routing]]:
    """Return what could be the routing of a traced block, likeliest first, as nodes and as values.

    x must contain the rows that the experts read; index must send to every expert that was hit just
    the tokens whose rows it read. Whether a weight is the right one shows when a body is lifted
    with it, and when the result is compared.
    """
    behind = g.descendants(gemms)
    before = [
        n for n in trace.graph.nodes if n not in behind and isinstance(n.meta.get("val"), Tensor)
    ]
    for x_node in _inputs(trace, before):
        x = x_node.meta["val"].reshape(-1, x_node.meta["val"].shape[-1])
        hit = {expert: tokens_of(gemm, x, weights) for gemm, expert in gemms.items()}
        if any(tokens is None for tokens in hit.values()):
            continue
        matrices = [node for node in reversed(before) if _is_pairs(node, len(x))]
        for index_node in matrices:
            index = _pairs(index_node, len(x))
            if index.is_floating_point() or not _sends(index, hit, len(x)):
                continue
            for weight_node in matrices:
                weight = _pairs(weight_node, len(x))
                if weight.is_floating_point() and weight.shape == index.shape:
                    nodes = (x_node, index_node, weight_node)
                    yield nodes, Routing(x, index, weight)


def _inputs(trace: Trace, before: list[Node]) -> list[Node]:
    """Return what the experts' input may be: the block's own, or what is computed from it."""
    own = trace.inputs[0]
    alike = [n for n in before if n is not own and n.meta["val"].numel() == own.meta["val"].numel()]
    return [own, *(n for n in alike if n.op == "call_function" and n.meta["val"].dim() >= 2)]


def _is_pairs(node: Node, tokens: int) -> bool:
    value = node.meta["val"]
    if value.dtype is torch.bool or node.op != "call_function":
        return False
    return tokens in (value.numel(), value.shape[:-1].numel()) and value.dim() > 0


def _pairs(node: Node, tokens: int) -> Tensor:
    value: Tensor = node.meta["val"]
    return value.reshape(tokens, -1)


def _sends(index: Tensor, hit: Mapping[int, Tensor | None], tokens: int) -> bool:
    """Tell whether an index gives every expert the tokens that it read."""
    read_all = all(read is not None and len(read) == tokens for read in hit.values())
    if read_all:
        return set(index.unique().tolist()) <= set(hit)
    return set(index.unique().tolist()) == set(hit) and all(
        read is not None and torch.equal(read.sort().values, torch.where(index == e)[0])
        for e, read in hit.items()
    )
