"""Write a body, what one expert computes for its rows, as standard ONNX operators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from modes_fx.export.onnx.nodes import Nodes
from modes_fx.export.onnx.operations import write_operation
from modes_fx.kernels.epilogue import MATMUL, SLICE, Body


@dataclass(frozen=True)
class Weights:
    """How one expert's part of the parameters is reached, which differs between the forms.

    Attributes:
        matrix: (parameter, transposed) -> ``[in, out]``, the factor that rows are multiplied with.
        part: parameter -> ``[1, ...]`` the expert's own slice, or the whole of a shared parameter.
    """

    matrix: Callable[[int, bool], ir.Value]
    part: Callable[[int], ir.Value]


def write_body(
    nodes: Nodes, body: Body, x: ir.Value, weight: ir.Value, weights: Weights
) -> ir.Value:
    """Write what one expert computes.

    Args:
        nodes: where to.
        body: what it computes.
        x: ``[n, H]`` the rows of its tokens.
        weight: ``[n, 1]`` their combine weights.
        weights: its parameters.

    Returns:
        ``[n, H]``, in the dtype that the model's own graph gives it.

    Raises:
        ExportError: an operation of the body has no ONNX form.
    """
    values: dict[str, ir.Value] = {"x": x, "w": weight}

    def read(arg: Any) -> Any:
        if not isinstance(arg, str):
            return arg
        return weights.part(int(arg[1:])) if arg.startswith("p") else values[arg]

    result = x
    for position, step in enumerate(body.steps):
        if step.op == MATMUL:
            rows, param, transposed, *bias = step.args
            left = read(rows)
            matrix = nodes.cast(weights.matrix(int(param[1:]), transposed), left.dtype)
            result = nodes.op("MatMul", left, matrix)
            if bias:
                added = nodes.cast(read(bias[0]), left.dtype)
                result = nodes.op("Add", result, added)
        elif step.op == SLICE:
            rows, start, end, stride = step.args
            result = nodes.op("Slice", read(rows), [start], [end], [-1], [stride])
        else:
            args = [read(arg) for arg in step.args]
            result = write_operation(nodes, step.op, args, dict(step.kwargs))
        values[f"%{position}"] = result
    return result
