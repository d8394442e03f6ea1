"""A region: the subgraph from (x, index, weight) to the routed experts' output, and its cut.

Whatever produced ``index`` and ``weight`` is the router and stays as the model wrote it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from modes_fx.kernels.epilogue import Body
from modes_fx.passes import graph as g


class NoMatchError(Exception):
    """Why a candidate is not a region that can be rewritten, in words, with the node at fault.

    Attributes:
        node: the name of the node at fault; empty where there is no single one.
    """

    def __init__(self, reason: str, node: Node | None = None) -> None:
        """``reason`` completes the sentence 'left as it is, because ...'."""
        super().__init__(f"{reason} (node {node.name})" if node is not None else reason)
        self.node = node.name if node is not None else ""


@dataclass(frozen=True)
class Scale:
    """What quantised weights are multiplied with.

    Attributes:
        node: ``[E, N]``, a graph input.
        dim: the dimension of ``[E, ., .]`` weights that N is.
    """

    node: Node
    dim: int


@dataclass(frozen=True)
class Gemm:
    """One GEMM of the experts.

    Attributes:
        node: its result, ``[S, out]`` up to unit dimensions; S = T * K rows, one a pair.
        rows: its input rows, ``[S, in]`` up to unit dimensions.
        weight: ``[E, ., .]``, the stacked parameter, or what is computed from parameters alone.
        transposed: whether rows are multiplied by the transpose of a matrix of ``weight``.
        scale: of integer weights.
    """

    node: Node
    rows: Node
    weight: Node
    transposed: bool
    scale: Scale | None = None

    @staticmethod
    def of(node: Node, rows: Node, operand: g.Operand) -> "Gemm":
        """Return the GEMM of rows and an operand."""
        scale = None if operand.scale is None else Scale(operand.scale, operand.scale_dim)
        return Gemm(node, rows, operand.weight, operand.transposed, scale)


@dataclass(frozen=True)
class Candidate:
    """Expert GEMMs that share one choice of experts, before anything else is known about them.

    Attributes:
        form: the dispatch form, for reports.
        gemms: in the graph's order.
        index_source: the node the choice enters by: ``index`` ``[T, K]`` behind views.
        root: the node from which everything depends on the choice, row by row.
    """

    form: str
    gemms: tuple[Gemm, ...]
    index_source: Node
    root: Node


@dataclass(frozen=True)
class Region:
    """A cut subgraph; T tokens, K experts per token, E experts, H hidden, I intermediate size.

    Attributes:
        form: the dispatch form.
        gemms: the expert GEMMs that the rewrite removes.
        x: ``[T, H]`` the experts' input.
        index: ``[T, K]`` integer.
        weight: ``[T, K]`` combine weights.
        out: ``[T, H]`` the sum over each token's experts.
        params: what the body reads: graph inputs, or what is computed from parameters alone.
        body: what an expert computes.
        num_experts: E.
        skipped_id: the expert id that a skipped pair gets; none of the experts' own.
        dense: ``[T, E]`` where the graph holds the combine weights so, 0 where not chosen.
    """

    form: str
    gemms: tuple[Gemm, ...]
    x: Node
    index: Node
    weight: Node
    out: Node
    params: tuple[Node, ...]
    body: Body
    num_experts: int
    skipped_id: int
    dense: Node | None = None

    @property
    def boundary(self) -> tuple[Node, ...]:
        """The values of the call that the region reads."""
        dense = () if self.dense is None else (self.dense,)
        return (self.x, self.index, self.weight, *dense)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that compute ``out`` from the boundary and graph inputs."""
        return g.between(self.out, self.boundary)


def pair_matrix(node: Node) -> Node:
    """Return the ``[T, K]`` matrix behind a flattened choice of experts.

    Raises:
        NoMatchError: there is none.
    """
    while node.target in g.VIEW_OPS and len(g.shape(node) or ()) != 2:
        node = node.all_input_nodes[0]
    dimensions = g.shape(node)
    if dimensions is None or len(dimensions) != 2 or g.is_floating(node):
        raise NoMatchError(
            "the choice of experts does not come from an integer matrix [T, K]", node
        )
    return node


def combine_of(candidate: Candidate, tokens: int, top_k: int) -> Node:
    """Return the node that sums each token's experts.

    Raises:
        NoMatchError: the rows are not summed over K as ``[T, K, H] -> [T, H]``.
    """
    last = candidate.gemms[-1].node
    reachable = g.descendants([last])
    for node in last.graph.nodes:
        if node in reachable and node.target is g.aten.sum.dim_IntList:
            rows = g.shape(node.args[0])
            if not rows or len(rows) != 3 or rows[:2] != (tokens, top_k):
                continue
            if node.args[1] == [1] and g.shape(node) == (tokens, rows[2]):
                return node
    raise NoMatchError(f"no sum over the {top_k} experts of each token follows the last GEMM", last)


def with_cast(node: Node, dtype: torch.dtype | None) -> Node:
    """Return a node, or the only thing done with it where that is a cast to ``dtype``."""
    users = list(node.users)
    if (
        len(users) == 1
        and users[0].target is g.aten._to_copy.default
        and g.dtype(users[0]) == dtype
    ):
        return users[0]
    return node


def check_enclosed(gemms: Sequence[Gemm], region_nodes: Sequence[Node], out: Node) -> None:
    """Check that nothing but the region reads what the GEMMs compute.

    Raises:
        NoMatchError: a value inside the region is read outside, so its GEMMs could not be removed.
    """
    inside = set(region_nodes)
    pending, seen = [gemm.node for gemm in gemms], set()
    while pending:
        node = pending.pop()
        if node is out or node in seen:
            continue
        seen.add(node)
        if node not in inside:
            raise NoMatchError(
                "the experts' intermediate values are also read outside the region", node
            )
        pending.extend(node.users)
