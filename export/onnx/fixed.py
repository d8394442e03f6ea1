"""Images of one size as constants, for runtimes that cannot compute with sizes given as values.

A model whose images differ in size is told their sizes by integers (``image_grid_thw``), and
computes positions and shapes from them. With those integers constant, so is all of this.
"""

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import optimizer
from torch import Tensor

from modes_fx.export.calls import Inputs, image_sizes, images

FOLDED_BYTES = 1 << 22
"""A constant of more than this stays a computation: tables for 16384 patches have a quarter."""


def fix_images(model: ir.Model, inputs: Inputs) -> None:
    """Make a model take images of the sizes of one call, and as many.

    Args:
        model: changed in place. The integers that tell the sizes are no longer among its inputs.
        inputs: of the call, by name.
    """
    sizes, pixels = image_sizes(inputs), images(inputs)
    if not sizes:
        return
    for value in list(model.graph.inputs):
        if value.name in sizes:
            _make_constant(model.graph, value, sizes)
        elif value.name in pixels:
            value.shape = ir.Shape(inputs[value.name].shape)
    _fold(model)


def _make_constant(graph: ir.Graph, value: ir.Value, sizes: Mapping[str, Tensor]) -> None:
    name = str(value.name)
    graph.inputs.remove(value)
    value.const_value = ir.tensor(sizes[name].numpy(), name=name)
    graph.register_initializer(value)


def _fold(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type == "CumSum":
            _make_scalar(model.graph, node, 1)
        for output in node.outputs:
            # Sizes that were unknown at capture have names of their own; numbers replace them.
            if not output.is_graph_output():
                output.shape = None
    optimizer.optimize_ir(
        model,
        num_iterations=3,
        input_size_limit=FOLDED_BYTES,
        output_size_limit=FOLDED_BYTES,
    )


def _make_scalar(graph: ir.Graph, node: ir.Node, position: int) -> None:
    """Give a node a scalar for an input of one element: some of ONNX's own code takes no other."""
    axis = node.inputs[position]
    if axis is None or axis.const_value is None or axis.const_value.numpy().ndim == 0:
        return
    name = f"{axis.name}_of_{node.outputs[0].name}"
    value = ir.tensor(axis.const_value.numpy().reshape(()), name=name)
    scalar = ir.Value(name=name, const_value=value)
    graph.register_initializer(scalar)
    node.replace_input_with(position, scalar)
