"""Lift what the experts compute out of the graph into a body (see ``modes_fx.kernels.epilogue``).

The graph computes row by row, one row a pair. Reordering rows (sorting by expert, undoing it) does
not change what a row's value is, so it is transparent here; only row-wise operations are copied.
"""

import operator
from typing import Any

import torch
from torch.fx import Node

from modes_fx.kernels.epilogue import ATEN_WHITELIST, MATMUL, SLICE, Body, Step
from modes_fx.passes import graph as g
from modes_fx.passes.region import Candidate, NoMatchError

aten = torch.ops.aten


class Lifter:
    """Copies the computation of one candidate's rows, from its inputs to one node.

    Attributes:
        x: the ``[T, H]`` node the rows are gathered from, once met.
        weight: the ``[T, K]`` node of the combine weights, once met.
        params: the graph inputs read so far.
    """

    def __init__(self, candidate: Candidate, tokens: int, top_k: int, num_experts: int) -> None:
        """Prepare to lift from a candidate of ``tokens`` x ``top_k`` rows."""
        self.x: Node | None = None
        self.weight: Node | None = None
        self.params: list[Node] = []
        self._per_expert: list[bool] = []
        self._steps: list[Step] = []
        self._names: dict[Node, str] = {}
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

    def _value(self, node: Node) -> str:
        if node not in self._names:
            self._names[node] = self._gemm(node) if node in self._gemms else self._other(node)
        return self._names[node]

    def _gemm(self, node: Node) -> str:
        gemm = self._gemms[node]
        rows = self._value(gemm.rows)
        return self._step(
            MATMUL, (rows, self._param(gemm.weight, per_expert=True), gemm.transposed)
        )

    def _other(self, node: Node) -> str:
        if node not in self._in_pairs:
            return self._boundary(node)
        if node.target is aten.index.Tensor:
            return self._gather(node)
        if node.target in g.VIEW_OPS:
            return self._view(node)
        if node.target is operator.getitem:
            return self._split(node)
        if node.target is aten.slice.Tensor:
            return self._slice(node)
        if str(node.target) in ATEN_WHITELIST:
            return self._row_wise(node)
        raise NoMatchError(f"the experts use {node.target}, which no body may contain", node)

    def _boundary(self, node: Node) -> str:
        pairs = (self._tokens, self._top_k)
        source = g.through_views(node, pairs)
        if g.is_floating(source) and g.shape(source) == pairs:
            return self._only("weight", source, "w")
        rows = node
        while rows.target in g.VIEW_OPS and (g.shape(rows) or ())[:-1] != (self._tokens,):
            rows = rows.all_input_nodes[0]
        if g.is_floating(rows) and (g.shape(rows) or ())[:-1] == (self._tokens,):
            return self._only("x", rows, "x")
        if g.is_weight(source):
            return self._param(source, per_expert=False)
        raise NoMatchError(
            "the experts read a value that is neither x, weight nor a parameter", node
        )

    def _gather(self, node: Node) -> str:
        source, indices = node.args[0], node.args[1]
        if len(indices) != 1:  # type: ignore[arg-type]
            raise NoMatchError("rows are indexed by more than one tensor", node)
        if source in self._in_pairs:
            return self._value(source)  # type: ignore[arg-type]
        dimensions = g.shape(source) or ()  # type: ignore[arg-type]
        if g.is_weight(source) and dimensions[:1] == (self._num_experts,):  # type: ignore[arg-type]
            return self._param(source, per_expert=True)  # type: ignore[arg-type]
        return self._boundary(source)  # type: ignore[arg-type]

    def _view(self, node: Node) -> str:
        source = node.all_input_nodes[0]
        if _width(node) != _width(source):
            raise NoMatchError("the experts' rows are reshaped", node)
        return self._value(source)

    def _split(self, node: Node) -> str:
        parts, number = node.args
        assert isinstance(parts, Node)
        assert isinstance(number, int)
        rows = parts.args[0]
        assert isinstance(rows, Node)
        rank = len(g.shape(rows) or ())
        dim = parts.args[2] if len(parts.args) > 2 else 0
        if parts.target is aten.split.Tensor and dim in (-1, rank - 1):
            size = parts.args[1]
            return self._step(SLICE, (self._value(rows), number * size, (number + 1) * size, 1))  # type: ignore[operator]
        if parts.target is aten.split_with_sizes.default and dim in (-1, rank - 1):
            sizes: Any = parts.args[1]
            start = sum(sizes[:number])
            return self._step(SLICE, (self._value(rows), start, start + sizes[number], 1))
        raise NoMatchError(f"the experts use {parts.target}, which no body may contain", parts)

    def _slice(self, node: Node) -> str:
        defaults: tuple[Any, ...] = (0, 0, None, 1)
        given: tuple[Any, ...] = node.args
        rows, dim, start, end, stride = given + defaults[len(given) - 1 :]
        dimensions = g.shape(rows) or ()
        if dim not in (-1, len(dimensions) - 1):
            raise NoMatchError(
                "the experts' rows are sliced in a dimension that is not the last", node
            )
        width = dimensions[-1]
        end = width if end is None else min(end, width)
        return self._step(SLICE, (self._value(rows), start or 0, end, stride))

    def _row_wise(self, node: Node) -> str:
        if node.target is aten.mean.dim and node.args[1] != [-1]:
            raise NoMatchError("the experts average over another dimension than the last", node)
        args = tuple(self._value(a) if isinstance(a, Node) else a for a in node.args)
        kwargs = {
            name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
            for name, value in node.kwargs.items()
            if isinstance(value, torch.dtype | bool | int | float | str)
            and name not in ("non_blocking", "pin_memory")
        }
        return self._step(str(node.target), args, kwargs)

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

    def _step(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> str:
        self._steps.append(Step(op, args, tuple(sorted((kwargs or {}).items()))))
        return f"%{len(self._steps) - 1}"


def _width(node: Node) -> int:
    return [1, *(size for size in g.shape(node) or () if size != 1)][-1]
