"""The gate of ``modes_fx.kernels.reference.gate`` in standard ONNX operators."""

import math

import onnx_ir as ir

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.nodes import Nodes

BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64


def write_gate(
    n: Nodes,
    index: ir.Value,
    weight: ir.Value,
    modality: ir.Value,
    theta: ir.Value,
    *,
    top_k: int,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[ir.Value, ir.Value]:
    """Write which pairs are kept.

    Args:
        n: where to.
        index: ``[T, K]`` the experts the router chose.
        weight: ``[T, K]`` the combine weights.
        modality: ``[T]`` modality code of each token.
        theta: ``[M]`` float32 threshold by modality code.
        top_k: K.
        num_experts: E, which becomes the id of skipped pairs.
        share: what is compared with the threshold.
        kept_mass_exponent: beta; kept weights are multiplied by (kept share mass) ** -beta.
        min_k: at least this many pairs of a token are kept, unless the threshold is +inf.

    Returns:
        The kept ``(index, weight)``, both ``[T, K]``.

    Raises:
        ExportError: an unknown kind of share.
    """
    wide = n.cast(weight, FLOAT)
    pi = _share(n, wide, share)
    codes = n.cast(modality, INT64)
    threshold = n.op("Unsqueeze", n.op("Gather", theta, codes, axis=0), [1])
    # Less is false for NaN, so a share that is NaN is kept.
    skip = n.op("Less", pi, threshold, dtype=BOOL)
    if min_k > 0:
        late = n.op("GreaterOrEqual", _rank(n, pi, top_k), min_k, dtype=BOOL)
        none = n.op("Equal", threshold, math.inf, dtype=BOOL)
        skip = n.op("And", skip, n.op("Or", late, none))
    kept = weight
    if kept_mass_exponent:
        scale = _kept_mass_scale(n, pi, skip, kept_mass_exponent)
        kept = n.cast(n.op("Mul", wide, scale), weight.dtype or FLOAT)
    return n.where(skip, num_experts, index), n.where(skip, 0.0, kept)


def _share(n: Nodes, wide: ir.Value, share: str) -> ir.Value:
    if share == "weight":
        return wide
    if share != "renormalised":
        raise ExportError(f"share must be 'renormalised' or 'weight', got {share!r}")
    total = n.op("ReduceSum", wide, [1], keepdims=1)
    return n.where(n.op("Equal", total, 0.0, dtype=BOOL), 0.0, n.op("Div", wide, total))


def _rank(n: Nodes, pi: ir.Value, top_k: int) -> ir.Value:
    """Return how many pairs of the token come before each: larger ones, and equal ones to the left.

    By comparison, since TopK promises no order of equal values in every runtime. NaN comes first,
    as PyTorch sorts it.
    """
    sortable = n.where(n.op("IsNaN", pi, dtype=BOOL), math.inf, pi)
    own, other = n.op("Unsqueeze", sortable, [2]), n.op("Unsqueeze", sortable, [1])
    left = n.constant([[[j < i for j in range(top_k)] for i in range(top_k)]], BOOL)
    larger = n.op("Greater", other, own, dtype=BOOL)
    equal = n.op("And", n.op("Equal", other, own, dtype=BOOL), left)
    before = n.cast(n.op("Or", larger, equal), INT64)
    return n.op("ReduceSum", before, [2], keepdims=0)


def _kept_mass_scale(n: Nodes, pi: ir.Value, skip: ir.Value, exponent: float) -> ir.Value:
    kept = n.op("ReduceSum", n.where(skip, 0.0, pi), [1], keepdims=1)
    mass = n.op("Div", kept, n.op("ReduceSum", pi, [1], keepdims=1))
    skipped = n.op("ReduceSum", n.cast(skip, FLOAT), [1], keepdims=1)
    some = n.op("Greater", skipped, 0.0, dtype=BOOL)
    reweighted = n.op("And", some, n.op("Greater", mass, 0.0, dtype=BOOL))
    return n.op("Pow", n.where(reweighted, mass, 1.0), -exponent)
