"""Our ops on a layer: the body is what the passes lift from the model's own module."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch.fx import GraphModule
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from modes_fx.bench.layer.calls import Call, make_cycle, run_gate
from modes_fx.bench.layer.weights import Layer, Layout, NotAvailableError, Runner
from modes_fx.graph_inputs import graph_inputs, pair_inputs
from modes_fx.kernels.panels import prepack
from modes_fx.passes.pipeline import rewrite_graph
from modes_fx.passes.rewrite import EXPERTS


class Lifted(NamedTuple):
    """What the experts of a module compute.

    Attributes:
        names: of its parameters and buffers, in the order in which the body numbers them.
        body: the JSON of the body.
    """

    names: tuple[str, ...]
    body: str


def prepare(layer: Layer, layout: Layout) -> Runner:
    """Return what calls the gate and the experts op, as a rewritten graph does.

    Raises:
        NotAvailableError: the passes do not rewrite this module.
        ValueError: its weights do not divide into panels.
    """
    lifted = lift(layer)
    stacks = [
        _laid_out(layout, lifted.body, [_tensors_of(module)[name] for name in lifted.names])
        for module in layer.copies
    ]

    def run(call: Call) -> Tensor:
        params, body = stacks[call.copy]
        index, weight = gate(layer, call)
        out: Tensor = EXPERTS(call.x, index, weight, params, body, layer.shape.experts)
        return out

    return run


def gate(layer: Layer, call: Call) -> tuple[Tensor, Tensor]:
    """Call the gate on what the router chose."""
    return run_gate(layer.shape, call.index, call.weight, call.modality, call.tokens, call.theta)


def route(layer: Layer, call: Call) -> None:
    """Gate and sort the pairs by expert: all of a call but the experts themselves."""
    index, weight = gate(layer, call)
    torch.ops.modes_fx.sort_pairs(index, weight, layer.shape.experts)


def lift(layer: Layer) -> Lifted:
    """Lift the body from the layer's module, proved on its weights as in any model.

    Raises:
        NotAvailableError: the passes do not rewrite this module.
    """
    module, found = layer.copies[0], []

    def record(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        given = pair_inputs(gm, captured)
        assert given is not None
        for node, item in given.items():
            node.meta["tensor_dict"] = item.marks
        values = {node: item.value for node, item in given.items()}
        reports = rewrite_graph(gm, values, {node: i.name for node, i in given.items()})
        for node in gm.graph.nodes:
            if node.target is EXPERTS:
                found.append(([values[param] for param in node.args[3]], node.args[4]))
        if not found:
            raise NotAvailableError(
                f"the passes left {type(module).__name__} as it is: "
                f"{'; '.join(report.reason for report in reports)}"
            )
        return make_boxed_func(gm.forward)

    captured: list[Any] = []

    def backend(graph: GraphModule, inputs: Sequence[Any]) -> Any:
        captured.extend(graph_inputs(graph, inputs))
        return aot_module_simplified(
            graph,
            inputs,
            fw_compiler=record,
            inference_compiler=record,
            decompositions={},
            keep_inference_input_mutations=True,
        )

    call = make_cycle(layer.shape, 2, 0.0, layer.dtype, copies=1).calls[0]
    grouped: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    with torch.inference_mode():
        torch.compile(grouped, backend=backend, fullgraph=True)(
            module, call.x, call.index, call.weight
        )
    params, body = found[0]
    return Lifted(tuple(_name_of(param, module) for param in params), body)


def _name_of(param: Tensor, module: nn.Module) -> str:
    return next(name for name, own in _tensors_of(module).items() if own is param)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _laid_out(layout: Layout, body: str, params: list[Tensor]) -> tuple[Sequence[Tensor], str]:
    return (params, body) if layout == "default" else prepack(body, params)
