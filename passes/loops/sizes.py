"""One graph for all sizes, from what two runs of different sizes have in common.

A trace has the sizes of its run written into its nodes. Where two runs agree in everything but
numbers, and every number that differs is the batch, the length, or both multiplied and times
something fixed, the number is that.
"""

from collections.abc import Sequence
from math import prod
from operator import mul
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from modes_fx.passes.loops.trace import Trace
from modes_fx.passes.region import NoMatchError

aten = torch.ops.aten


class Cut:
    """The part of a trace that computes some of its nodes from its first input.

    Attributes:
        trace: the trace.
        results: the nodes wanted; None stays None.
        nodes: what they need, in order.
    """

    def __init__(self, trace: Trace, results: Sequence[Node | None]) -> None:
        """Collect what the results need."""
        self.trace, self.results = trace, tuple(results)
        needed = {result for result in results if result is not None}
        pending = list(needed)
        while pending:
            sources = set(pending.pop().all_input_nodes) - needed
            needed |= sources
            pending += sources
        self.nodes = [node for node in trace.graph.nodes if node in needed]


def for_all_sizes(first: Cut, second: Cut, names: dict[int, str]) -> tuple[GraphModule, list[str]]:
    """Return a module that computes the results of a cut for an input of any size.

    Args:
        first: a cut of one run.
        second: the same cut of a run with an input of other sizes.
        names: of the weights in their module, by ``id``.

    Returns:
        A module called as ``(x, *weights)``, and the names of those weights.

    Raises:
        NoMatchError: the two runs are not the same but for sizes.
    """
    if [node.target for node in first.nodes] != [node.target for node in second.nodes]:
        raise NoMatchError("what surrounds its experts depends on the data")
    return _Merger(first, second, names).merge()


class _Merger:
    def __init__(self, first: Cut, second: Cut, names: dict[int, str]) -> None:
        self._first, self._second, self._names = first, second, names
        self._graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._partner = dict(zip(first.nodes, second.nodes, strict=True))
        self._weights: dict[str, Node] = {}
        self._constants: dict[str, torch.Tensor] = {}

    def merge(self) -> tuple[GraphModule, list[str]]:
        self._x = self._graph.placeholder("x")
        self._sizes = [tuple(cut.trace.inputs[0].meta["val"].shape[:-1]) for cut in self._cuts]
        for node in self._first.nodes:
            if node.op == "get_attr":
                self._copies[node] = self._weight(node)
        for node in self._first.nodes:
            if node.op == "placeholder":
                self._copies[node] = self._x
            elif node.op == "call_function":
                self._copies[node] = self._operation(node)
        results = [None if node is None else self._copies[node] for node in self._first.results]
        self._graph.output(results)
        return GraphModule(self._constants, self._graph), list(self._weights)

    @property
    def _cuts(self) -> tuple[Cut, Cut]:
        return self._first, self._second

    def _weight(self, node: Node) -> Node:
        name = self._names.get(id(self._first.trace.weights[node]))
        if name is None:
            self._constants[str(node.target)] = self._first.trace.weights[node]
            return self._graph.get_attr(str(node.target))
        if name not in self._weights:
            self._weights[name] = self._graph.placeholder(name.replace(".", "_"))
        return self._weights[name]

    def _operation(self, node: Node) -> Node:
        partner = self._partner[node]
        args = self._merged(node.args, partner.args)
        kwargs = self._merged(dict(node.kwargs), dict(partner.kwargs))
        return self._graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]

    def _merged(self, one: Any, other: Any) -> Any:
        if isinstance(one, Node):
            if self._partner.get(one) is not other:
                raise NoMatchError("what surrounds its experts depends on the data", one)
            return self._copies[one]
        if isinstance(one, dict):
            return {key: self._merged(one[key], other[key]) for key in one}
        if isinstance(one, tuple | list):
            if len(one) != len(other):
                raise NoMatchError("what surrounds its experts depends on the data")
            return type(one)(self._merged(a, b) for a, b in zip(one, other, strict=True))
        if one == other:
            return one
        if type(one) is not int or type(other) is not int:
            raise NoMatchError(f"what surrounds its experts depends on the data: {one} or {other}")
        return self._size(one, other)

    def _size(self, one: int, other: int) -> Node:
        """Return the size that is ``one`` in the first run and ``other`` in the second."""
        first, second = self._sizes
        whole = (prod(first), prod(second))
        choices = [((a, b), [dim]) for dim, (a, b) in enumerate(zip(first, second, strict=True))]
        for (a, b), dims in [*choices, (whole, list(range(len(first))))]:
            if one % a == 0 and other % b == 0 and one // a == other // b:
                return self._product(dims, one // a)
        raise NoMatchError(f"what surrounds its experts depends on the data: {one} or {other}")

    def _product(self, dims: list[int], factor: int) -> Node:
        node = self._dim(dims[0])
        for dim in dims[1:]:
            node = self._graph.call_function(mul, (node, self._dim(dim)))
        return self._graph.call_function(mul, (node, factor)) if factor != 1 else node

    def _dim(self, dim: int) -> Node:
        return self._graph.call_function(aten.sym_size.int, (self._x, dim))
