"""Run a module on a few tokens and write down every operation with its value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx


@dataclass(frozen=True)
class Trace:
    """One run of a module, control flow unrolled.

    Attributes:
        graph: the ATen operations in order, in-place ones as they are; ``meta["val"]`` of a node is
            the value it had when it was computed.
        weights: the parameter, buffer or constant behind each ``get_attr`` node.
    """

    graph: Graph
    weights: Mapping[Node, Tensor]

    @property
    def inputs(self) -> list[Node]:
        """The nodes of the call's arguments."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def output(self) -> Any:
        """The nodes that the call returns, in the structure that it returns them in."""
        return next(node for node in self.graph.nodes if node.op == "output").args[0]

    def copy(self) -> tuple["Trace", dict[Node, Node]]:
        """Return a copy that may be changed, and its node for each node of this trace."""
        graph, nodes = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.graph, nodes))
        return Trace(graph, {nodes[node]: weight for node, weight in self.weights.items()}), nodes


def trace(call: Callable[..., Any], *args: Tensor) -> Trace:
    """Run ``call(*args)`` once and write it down."""
    with torch.no_grad():
        # Reading a value on the host (.item(), .tolist(), .numpy()) is what these loops live on.
        module = make_fx(call, tracing_mode="real", _error_on_data_dependent_ops=False)(*args)
        _Recorder(module).run(*args)
    graph = module.graph
    weights = {node: getattr(module, node.target) for node in graph.nodes if node.op == "get_attr"}
    return Trace(graph, weights)


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._weights: set[int] = set()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = value
        if isinstance(value, Tensor):
            storage = value.untyped_storage().data_ptr()
            if n.op == "get_attr":
                self._weights.add(storage)
            elif storage not in self._weights:
                # An operation in place would change what was written down before.
                n.meta["val"] = value.clone()
        return value
