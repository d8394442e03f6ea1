"""The experts as one branch each, taken where the expert has tokens: the form for ONNX Runtime.

An expert without tokens costs an ``If`` that is not taken. Its weights are constants of their own,
laid out as the product reads them, so that none is copied or transposed at run time.
"""

from collections.abc import Sequence

import onnx_ir as ir
import torch

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.body import Weights, write_body
from modes_fx.export.onnx.nodes import Nodes, lazy, torch_tensor
from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.panels import matrix_of

BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64

# T tokens, K experts per token, E experts, H hidden size, P kept pairs.


def write_unrolled(
    n: Nodes,
    x: ir.Value,
    index: ir.Value,
    weight: ir.Value,
    params: Sequence[ir.Value],
    body: Body,
    *,
    num_experts: int,
    top_k: int,
    hidden: int,
) -> ir.Value:
    """Write the sum of the kept experts' outputs of every token.

    Args:
        n: where to.
        x: ``[T, H]`` hidden states.
        index: ``[T, K]``; ids outside 0 .. E - 1 are skipped pairs.
        weight: ``[T, K]`` combine weights.
        params: the parameters of ``body``, constants.
        body: what an expert computes.
        num_experts: E.
        top_k: K.
        hidden: H.

    Returns:
        ``[T, H]`` in the dtype of ``x``, summed in float32.

    Raises:
        ExportError: an operation of the body has no ONNX form, or a parameter is no constant.
    """
    expert = write_expert_of_pairs(n, index, num_experts)
    scales = n.op("Reshape", weight, [-1, 1])
    taken = _has_pairs(n, expert, num_experts)
    pairs, outputs = [], []
    # Row 0 is what a skipped pair adds.
    outputs.append(n.constant([[0.0] * hidden], FLOAT))
    for e in range(num_experts):
        branch = Nodes(n.constants)
        mine = branch.op("Equal", expert, e, dtype=BOOL)
        pair = branch.op("Squeeze", branch.op("NonZero", mine, dtype=INT64), [0])
        rows = branch.op("Gather", x, branch.op("Div", pair, top_k), axis=0)
        scale = branch.op("Gather", scales, pair, axis=0)
        result = write_body(branch, body, rows, scale, _weights_of(n, params, body, e))
        here = [pair, branch.cast(result, FLOAT)]
        absent = Nodes(n.constants)
        none = [
            absent.op("Identity", n.constant([])),
            absent.op("Identity", _no_rows(n, hidden)),
        ]
        got = n.op_with(
            "If",
            [taken[e]],
            2,
            {
                "then_branch": branch.graph(f"expert_{e}", [], here),
                "else_branch": absent.graph(f"expert_{e}_absent", [], none),
            },
        )
        for value, dtype in zip(got, (INT64, FLOAT), strict=True):
            value.dtype = dtype
        pairs.append(got[0])
        outputs.append(got[1])
    return _combine(n, x, expert, pairs, outputs, top_k)


def write_expert_of_pairs(n: Nodes, index: ir.Value, num_experts: int) -> ir.Value:
    """Write the expert of every pair, ``[T * K]`` int64; E for those that are skipped."""
    flat = n.op("Reshape", n.cast(index, INT64), [-1])
    negative = n.op("Less", flat, 0, dtype=BOOL)
    return n.where(negative, num_experts, n.op("Min", flat, num_experts))


def _has_pairs(n: Nodes, expert: ir.Value, num_experts: int) -> Sequence[ir.Value]:
    """Return for each expert whether it has any pairs, ``[1]`` each; last for skipped pairs."""
    hit = n.op(
        "ScatterElements",
        n.constant([0] * (num_experts + 1)),
        expert,
        n.op("Expand", n.constant([1]), n.op("Shape", expert, dtype=INT64)),
        axis=0,
        reduction="max",
    )
    flags = n.cast(hit, BOOL)
    return n.op_with("Split", [flags], num_experts + 1, {"num_outputs": num_experts + 1}, BOOL)


def _combine(
    n: Nodes,
    x: ir.Value,
    expert: ir.Value,
    pairs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    top_k: int,
) -> ir.Value:
    """Sum the rows of every token, in the order of its experts.

    Rows are looked up rather than added to the tokens' sums: two rows of one token would race.
    """
    pair = n.op("Concat", *pairs, axis=0)  # [P]
    rows = n.op("Concat", *outputs, axis=0)  # [1 + P, H]
    count = n.op("Shape", pair, dtype=INT64)
    position = n.op("Range", 1, n.op("Squeeze", n.op("Add", count, 1), [0]), 1)
    nowhere = n.op("Mul", expert, 0)
    row = n.op("ScatterElements", nowhere, pair, position, axis=0)
    of_token = n.op("Reshape", row, [-1, top_k])
    total = n.op("ReduceSum", n.op("Gather", rows, of_token, axis=0), [1], keepdims=0)
    return n.cast(total, x.dtype or FLOAT)


def _weights_of(n: Nodes, params: Sequence[ir.Value], body: Body, e: int) -> Weights:
    def constant(value: ir.Value) -> torch.Tensor:
        tensor = torch_tensor(value)
        if tensor is None:
            raise ExportError(
                f"the experts' parameter {value.name} is computed at run time; this form needs "
                "constants: export the model itself, not one that takes its weights as inputs"
            )
        return tensor

    def matrix(position: int, transposed: bool) -> ir.Value:
        value = params[position]
        tensor = constant(value)
        rows, columns = matrix_of(tensor, e).shape
        shape = (columns, rows) if transposed else (rows, columns)

        def laid_out() -> torch.Tensor:
            own = matrix_of(tensor, e)
            return own.T if transposed else own

        name = f"{value.name}.{e}{'.transposed' if transposed else ''}"
        return n.constants.tensor(name, lazy(laid_out, _dtype(value), shape))

    def part(position: int) -> ir.Value:
        value = params[position]
        if not body.per_expert[position]:
            return value
        tensor = constant(value)
        name = f"{value.name}.{e}.part"
        shape = (1, *tensor.shape[1:])
        return n.constants.tensor(name, lazy(lambda: tensor[e : e + 1], _dtype(value), shape))

    return Weights(matrix, part)


def _no_rows(n: Nodes, hidden: int) -> ir.Value:
    empty = lazy(lambda: torch.empty(0, hidden), FLOAT, (0, hidden))
    return n.constants.tensor(f"modes_fx.no_rows.{hidden}", empty)


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype
