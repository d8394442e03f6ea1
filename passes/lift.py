"""Lift what the experts compute out of the graph into a body (see ``modes_fx.kernels.epilogue``).

The graph computes row by row, one row a pair. Reordering rows (sorting by expert, undoing it) does
not change what a row's value is, so it is transparent here; only row-wise operations are copied.
"""

import torch
from torch.fx import Node

from modes_fx.kernels.epilogue import MATMUL, Body
from modes_fx.passes import graph as g
from modes_fx.passes.other_devices import is_sentinel_mask
from modes_fx.passes.region import Candidate, NoMatchError
from modes_fx.passes.rows import RowLifter

aten = torch.ops.aten


class Lifter(RowLifter):
    """Copies the computation of one candidate's rows, from its inputs to one node.

    Attributes:
        x: the ``[T, H]`` node the rows are gathered from, once met.
        weight: the ``[T, K]`` node of the combine weights, once met.
        params: the graph inputs read so far.
    """

    def __init__(self, candidate: Candidate, tokens: int, top_k: int, num_experts: int) -> None:
        """Prepare to lift from a candidate of ``tokens`` x ``top_k`` rows."""
        super().__init__()
        self.x: Node | None = None
        self.weight: Node | None = None
        self.params: list[Node] = []
        self._per_expert: list[bool] = []
        self._gemms = {gemm.node: gemm for gemm in candidate.gemms}
        self._in_pairs = g.descendants([candidate.root])
        self._tokens, self._top_k, self._num_experts = tokens, top_k, num_experts

    def lift(self, result: Node) -> Body:
        """Return the body that computes ``result``.

        Raises:
            NoMatchError: something on the way is not a row-wise operation of the whitelist.
        """
        name = self._value(result)
        if name != f"%{len(self._steps) - 1}":
            raise NoMatchError("the experts compute nothing", result)
        return Body(tuple(self._per_expert), tuple(self._steps))

    def _leaf(self, node: Node) -> str | None:
        if node in self._gemms:
            return self._gemm(node)
        if node not in self._in_pairs:
            return self._boundary(node)
        if node.target is aten.index.Tensor:
            return self._gather(node)
        if is_sentinel_mask(node, self._num_experts):
            return self._value(node.args[0])  # type: ignore[arg-type]
        return None

    def _gemm(self, node: Node) -> str:
        gemm = self._gemms[node]
        rows = self._value(gemm.rows)
        product = self._step(
            MATMUL, (rows, self._param(gemm.weight, per_expert=True), gemm.transposed)
        )
        if gemm.scale is None:
            return product
        if gemm.scale.dim != (1 if gemm.transposed else 2):
            raise NoMatchError("its weights' scales do not belong to output columns", node)
        # One scale a column: it may as well multiply the product.
        scale = self._param(gemm.scale.node, per_expert=True)
        return self._step("aten.mul.Tensor", (product, scale))

    def _boundary(self, node: Node) -> str | None:
        """Return the name of a value from outside; None where it is computed from parameters."""
        pairs = (self._tokens, self._top_k)
        param = g.through_views(node)
        if g.is_weight(param):
            return self._param(param, per_expert=False)
        if g.depends_on_weights_only(node):
            return None
        source = g.through_views(node, pairs)
        if g.is_floating(source) and g.shape(source) == pairs:
            return self._only("weight", source, "w")
        rows = node
        while rows.target in g.VIEW_OPS and (g.shape(rows) or ())[:-1] != (self._tokens,):
            rows = rows.all_input_nodes[0]
        if g.is_floating(rows) and (g.shape(rows) or ())[:-1] == (self._tokens,):
            return self._only("x", rows, "x")
        raise NoMatchError(
            "the experts read a value that is neither x, weight nor a parameter", node
        )

    def _gather(self, node: Node) -> str | None:
        source, indices = node.args[0], node.args[1]
        if len(indices) != 1:  # type: ignore[arg-type]
            raise NoMatchError("rows are indexed by more than one tensor", node)
        if source in self._in_pairs:
            return self._value(source)  # type: ignore[arg-type]
        dimensions = g.shape(source) or ()  # type: ignore[arg-type]
        if g.is_weight(source) and dimensions[:1] == (self._num_experts,):  # type: ignore[arg-type]
            return self._param(source, per_expert=True)  # type: ignore[arg-type]
        return self._boundary(source)  # type: ignore[arg-type]

    def _only(self, role: str, node: Node, name: str) -> str:
        if getattr(self, role) not in (None, node):
            raise NoMatchError(f"two different values could be {role}", node)
        setattr(self, role, node)
        return name

    def _param(self, node: Node, per_expert: bool) -> str:
        if node not in self.params:
            self.params.append(node)
            self._per_expert.append(per_expert)
        return f"p{self.params.index(node)}"
