"""Replace our nodes in an ONNX model by standard operators."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.blocked import write_blocked
from modes_fx.export.onnx.codes import widen_codes
from modes_fx.export.onnx.gate import write_gate
from modes_fx.export.onnx.means import write_skipped_means
from modes_fx.export.onnx.nodes import Constants, Nodes
from modes_fx.export.onnx.placeholders import DOMAIN
from modes_fx.export.onnx.unrolled import write_unrolled
from modes_fx.kernels.epilogue import Body

Form = Literal["unrolled", "blocked"]
"""How the experts are written."""

FORMS: Mapping[Form, Callable[..., ir.Value]] = MappingProxyType(
    {"unrolled": write_unrolled, "blocked": write_blocked}
)


def lower(model: ir.Model, form: Form) -> int:
    """Replace every node of our domain; weights that nothing reads any more are dropped.

    Args:
        model: as ``placeholders.translate`` returns it; changed in place.
        form: how the experts are written.

    Returns:
        How many layers of experts there were.

    Raises:
        ExportError: an expert's computation has no ONNX form, or a size that is needed is unknown.
    """
    constants = Constants()
    layers = 0
    for node in list(model.graph):
        if node.domain == DOMAIN:
            layers += node.op_type == "Experts"
            _replace(model.graph, node, constants, form)
    for value in constants.values.values():
        model.graph.register_initializer(value)
    model.opset_imports.pop(DOMAIN, None)
    # Traces hold paths of the machine that exported.
    Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.NameFixPass(),
    )(model)
    return layers


def _replace(graph: ir.Graph, node: ir.Node, constants: Constants, form: Form) -> None:
    nodes = Nodes(constants)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = [value for value in node.inputs if value is not None]
    results: tuple[ir.Value, ...]
    if node.op_type == "Gate":
        top_k = _static(inputs[0], 1)
        widen_codes(inputs[2])
        results = write_gate(nodes, *inputs[:4], top_k=top_k, **attributes)
    elif node.op_type == "Experts":
        results = (_write_experts(nodes, inputs, attributes, FORMS[form]),)
    else:
        codes, num_experts, hidden = (_static(inputs[5], axis) for axis in range(3))
        results = (write_skipped_means(nodes, *inputs[:6], sizes=(codes, num_experts, hidden)),)
    for old, new in zip(node.outputs, results, strict=True):
        new.shape = old.shape
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], nodes.written, node.outputs, results
    )


def _write_experts(
    nodes: Nodes,
    inputs: list[ir.Value],
    attributes: Mapping[str, Any],
    write: Callable[..., ir.Value],
) -> ir.Value:
    x, index, weight, *params = inputs
    return write(
        nodes,
        x,
        index,
        weight,
        params,
        Body.from_json(attributes["body"]),
        num_experts=attributes["num_experts"],
        top_k=_static(index, 1),
        hidden=_static(x, 1),
    )


def _static(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(
            f"dimension {axis} of {value.name} is {size}, and has to be a number: export with "
            "batch and sequence dynamic only"
        )
    return size
