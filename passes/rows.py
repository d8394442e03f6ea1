"""Write row-wise operations of a graph down as the steps of a body.

Reordering, slicing the last dimension and element-wise operations of the whitelist look the same in
every dispatch form; what the rows are made of (tokens, combine weights, expert weights) does not,
and is for the subclass to say.
"""

import operator
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.fx import Node

from modes_fx.kernels.epilogue import ATEN_WHITELIST, SLICE, Step
from modes_fx.passes import graph as g
from modes_fx.passes.region import NoMatchError

aten = torch.ops.aten


class RowLifter(ABC):
    """Copies the computation of rows, from its inputs to one node."""

    def __init__(self) -> None:
        """Start with an empty body."""
        self._steps: list[Step] = []
        self._names: dict[Node, str] = {}

    @abstractmethod
    def _leaf(self, node: Node) -> str | None:
        """Return the value's name where a node is an input, a GEMM or a reordering; else None."""

    def _value(self, node: Node) -> str:
        if node not in self._names:
            self._names[node] = self._leaf(node) or self._operation(node)
        return self._names[node]

    def _operation(self, node: Node) -> str:
        if node.target in g.VIEW_OPS:
            return self._view(node)
        if node.target is operator.getitem:
            return self._split(node)
        if node.target is aten.slice.Tensor:
            return self._slice(node)
        if functional_name(node) in ATEN_WHITELIST:
            return self._row_wise(node)
        raise NoMatchError(f"the experts use {node.target}, which no body may contain", node)

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
        if node.target in (aten.mean.dim, aten.sum.dim_IntList) and node.args[1:] != ([-1], True):
            raise NoMatchError("the experts reduce another dimension than the last", node)
        args = tuple(self._value(a) if isinstance(a, Node) else a for a in node.args)
        kwargs = {
            name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
            for name, value in node.kwargs.items()
            if isinstance(value, torch.dtype | bool | int | float | str)
            and name not in ("non_blocking", "pin_memory")
        }
        return self._step(functional_name(node), args, kwargs)

    def _step(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> str:
        self._steps.append(Step(op, args, tuple(sorted((kwargs or {}).items()))))
        return f"%{len(self._steps) - 1}"


def functional_name(node: Node) -> str:
    """Return the name of a node's ATen operation; of the functional one where it is in place."""
    namespace, _, operation = str(node.target).partition(".")
    name, _, overload = operation.partition(".")
    return f"{namespace}.{name.removesuffix('_')}.{overload}"


def _width(node: Node) -> int:
    return [1, *(size for size in g.shape(node) or () if size != 1)][-1]
