"""Mean compensation in standard ONNX operators: what skipped experts put out on average."""

import onnx_ir as ir

from modes_fx.export.onnx.nodes import Nodes

BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64


def write_skipped_means(
    n: Nodes,
    out: ir.Value,
    index: ir.Value,
    weight: ir.Value,
    kept_index: ir.Value,
    modality: ir.Value,
    means: ir.Value,
    *,
    sizes: tuple[int, int, int],
) -> ir.Value:
    """Write what ``modes_fx.kernels.reference.add_skipped_means`` computes.

    Every pair reads a row of the table, with weight 0 where it was kept.

    Args:
        n: where to.
        out: ``[T, H]`` the kept experts' output.
        index: ``[T, K]`` the experts the router chose.
        weight: ``[T, K]`` combine weights before the gate.
        kept_index: ``[T, K]`` the gate's choice.
        modality: ``[T]`` modality code of each token.
        means: ``[C, E, H]``.
        sizes: C, E and H.

    Returns:
        ``[T, H]`` in the dtype of ``out``.
    """
    codes, num_experts, hidden = sizes
    code = n.op("Unsqueeze", n.cast(modality, INT64), [1])
    index, kept_index = n.cast(index, INT64), n.cast(kept_index, INT64)
    skipped = n.op("Not", n.op("Equal", kept_index, index, dtype=BOOL))
    known = n.op("Less", index, num_experts, dtype=BOOL)
    listed = n.op("Less", code, codes, dtype=BOOL)
    counts = n.op("And", skipped, n.op("And", known, listed))
    share = n.where(counts, n.cast(weight, FLOAT), 0.0)
    row = n.where(counts, n.op("Add", n.op("Mul", code, num_experts), index), 0)
    table = n.op("Reshape", means, [codes * num_experts, hidden])
    rows = n.cast(n.op("Gather", table, row, axis=0, dtype=means.dtype), FLOAT)
    added = n.op("MatMul", n.op("Unsqueeze", share, [1]), rows)
    total = n.op("Add", n.cast(out, FLOAT), n.op("Squeeze", added, [1]))
    return n.cast(total, out.dtype or FLOAT)
