"""The experts as a loop over blocks of rows: the form for TensorRT-RTX.

It has neither branches nor shapes that depend on data, and no plug-ins, but it has loops whose
number of turns does. Kept pairs are sorted by expert into blocks of ``ROWS`` rows; a block is of
one expert, and only blocks that hold pairs are computed.
"""

from collections.abc import Sequence

import onnx_ir as ir

from modes_fx.export.onnx.body import Weights, write_body
from modes_fx.export.onnx.nodes import Nodes, lazy, torch_tensor
from modes_fx.export.onnx.unrolled import write_expert_of_pairs
from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.panels import is_packed, unpack

BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64

ROWS = 16
"""Rows of a block: what one product with an expert's matrices computes."""

# T tokens, K experts per token, E experts, H hidden size, B rows of a block, P = T * K.


def write_blocked(
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
    """Write the sum of the kept experts' outputs; see ``unrolled.write_unrolled``."""
    expert = write_expert_of_pairs(n, index, num_experts)
    num_pairs = n.op("Shape", expert, dtype=INT64)  # [1]
    last_block, total, slot_pair = _blocks(n, expert, num_pairs, num_experts)
    padded_x = n.op("Concat", x, _zeros(n, [[0.0] * hidden], x), axis=0)
    scales = n.op("Reshape", weight, [-1, 1])
    padded_scales = n.op("Concat", scales, _zeros(n, [[0.0]], weight), axis=0)
    shape = n.op("Concat", n.op("Add", num_pairs, 1), n.constant([hidden]), axis=0)
    start = n.op("Expand", n.constant([[0.0]], FLOAT), shape)

    loop = Nodes(n.constants)
    turn = ir.Value(name="turn", type=ir.TensorType(INT64), shape=ir.Shape([]))
    go_on = ir.Value(name="go_on", type=ir.TensorType(BOOL), shape=ir.Shape([]))
    rows_so_far = ir.Value(
        name="rows_so_far", type=ir.TensorType(FLOAT), shape=ir.Shape([None, hidden])
    )
    before = loop.cast(loop.op("LessOrEqual", last_block, turn, dtype=BOOL), INT64)
    e = loop.op("ReduceSum", before, [0], keepdims=1)  # [1]
    places = loop.op("Add", loop.op("Mul", turn, ROWS), loop.constant(list(range(ROWS))))
    pair = loop.op("Gather", slot_pair, places, axis=0)  # [B], P where there is none
    rows = loop.op("Gather", padded_x, loop.op("Div", pair, top_k), axis=0)
    scale = loop.op("Gather", padded_scales, pair, axis=0)
    result = write_body(loop, body, rows, scale, _weights_at(loop, params, body, e))
    # The places of one block differ, but for those that hold no pair, whose row is dropped.
    written = loop.op(
        "ScatterND", rows_so_far, loop.op("Unsqueeze", pair, [1]), loop.cast(result, FLOAT)
    )
    turns = loop.graph("blocks", [turn, go_on, rows_so_far], [loop.op("Identity", go_on), written])

    always = n.constant(True, BOOL)
    filled = n.op_with("Loop", [total, always, start], 1, {"body": turns}, FLOAT)[0]
    of_pairs = n.op("Slice", filled, [0], num_pairs, [0])
    of_tokens = n.op("Reshape", of_pairs, [-1, top_k, hidden])
    return n.cast(n.op("ReduceSum", of_tokens, [1], keepdims=0), x.dtype or FLOAT)


def _blocks(
    n: Nodes, expert: ir.Value, num_pairs: ir.Value, num_experts: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Lay the pairs out in blocks.

    Returns:
        ``[E]`` how many blocks end with each expert; how many there are, a scalar; and the pair at
        each place of the blocks, P where there is none.
    """
    ids = n.constant([list(range(num_experts))])
    chosen = n.cast(n.op("Equal", n.op("Unsqueeze", expert, [1]), ids, dtype=BOOL), INT64)  # [P, E]
    counts = n.op("ReduceSum", chosen, [0], keepdims=0)
    blocks = n.op("Div", n.op("Add", counts, ROWS - 1), ROWS)
    last = n.op("CumSum", blocks, n.constant(0))
    first = n.op("Sub", last, blocks)
    total = n.op("ReduceSum", blocks, [0], keepdims=0)
    earlier = n.op("CumSum", chosen, n.constant(0), exclusive=1)
    rank = n.op("ReduceSum", n.op("Mul", earlier, chosen), [1], keepdims=0)  # [P]
    mine = n.op("Gather", first, n.op("Min", expert, num_experts - 1), axis=0)
    place = n.op("Add", n.op("Mul", mine, ROWS), rank)
    # No expert fills its last block, at worst; one place more takes the skipped pairs.
    places = n.op("Add", num_pairs, num_experts * ROWS)
    is_kept = n.op("Less", expert, num_experts, dtype=BOOL)
    place = n.where(is_kept, place, places)
    empty = n.op("Expand", num_pairs, n.op("Add", places, 1))
    pair = n.op("Range", 0, n.op("Squeeze", num_pairs, [0]), 1, dtype=INT64)
    return last, total, n.op("ScatterElements", empty, place, pair, axis=0)


def _weights_at(n: Nodes, params: Sequence[ir.Value], body: Body, e: ir.Value) -> Weights:
    def matrix(position: int, transposed: bool) -> ir.Value:
        value = _columns_last(n, params[position], transposed)
        return n.op("Squeeze", n.op("Gather", value, e, axis=0), [0])

    def part(position: int) -> ir.Value:
        value = params[position]
        return n.op("Gather", value, e, axis=0) if body.per_expert[position] else value

    return Weights(matrix, part)


def _columns_last(n: Nodes, value: ir.Value, transposed: bool) -> ir.Value:
    """Return ``[E, in, out]`` weights, as a constant where they are one."""
    tensor = torch_tensor(value)
    assert value.dtype is not None
    if tensor is None:
        return n.op("Transpose", value, perm=[0, 2, 1]) if transposed else value
    if is_packed(tensor):
        experts, blocks, groups, panel, group = tensor.shape
        shape = (experts, groups * group, blocks * panel)
        content = lazy(lambda: unpack(tensor).transpose(1, 2), value.dtype, shape)
    elif transposed:
        experts, columns, rows = tensor.shape
        content = lazy(lambda: tensor.transpose(1, 2), value.dtype, (experts, rows, columns))
    else:
        return value
    return n.constants.tensor(f"{value.name}.columns_last", content)


def _zeros(n: Nodes, content: list[list[float]], like: ir.Value) -> ir.Value:
    return n.constant(content, like.dtype or FLOAT)
