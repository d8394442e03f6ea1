"""Row-wise ATen operations of a body as standard ONNX operators."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.nodes import Nodes, promote

Operation = Callable[..., ir.Value]
"""(nodes, *arguments, **keywords) -> the result; arguments as in ATen, tensors as values."""

UNARY = {
    "abs": "Abs",
    "erf": "Erf",
    "exp": "Exp",
    "neg": "Neg",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
"""ATen operations that are one ONNX operator of the same meaning."""

ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}


def write_operation(
    nodes: Nodes, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ir.Value:
    """Write one ATen overload, such as ``aten.silu.default``, and return its result.

    Raises:
        ExportError: there is no way to write it; the message names it.
    """
    operation = OPERATIONS.get(op)
    if operation is None:
        raise ExportError(
            f"an expert computes {op}, which has no ONNX form yet: add it to "
            "modes_fx/export/onnx/operations.py, or export to pt2"
        )
    return operation(nodes, *args, **kwargs)


def _unary(op_type: str) -> Operation:
    return lambda n, x: n.op(op_type, x)


def _arithmetic(op_type: str) -> Operation:
    def write(n: Nodes, left: Any, right: Any, alpha: float = 1) -> ir.Value:
        left, right = _same_dtype(n, left, right)
        return n.op(op_type, left, right if alpha == 1 else _scaled(n, right, alpha))

    return write


def _same_dtype(n: Nodes, *operands: Any) -> list[ir.Value]:
    """Promote tensors as PyTorch does; a number takes the dtype of the tensors."""
    common = promote(*(value for value in operands if isinstance(value, ir.Value)))
    return [
        n.cast(value, common) if isinstance(value, ir.Value) else n.constant(value, common)
        for value in operands
    ]


def _scaled(n: Nodes, x: ir.Value, factor: float) -> ir.Value:
    return x if factor == 1 else n.op("Mul", x, factor)


def _rsub(n: Nodes, x: ir.Value, other: Any, alpha: float = 1) -> ir.Value:
    x, other = _same_dtype(n, x, other)
    return n.op("Sub", other, _scaled(n, x, alpha))


def _extremum(op_type: str) -> Operation:
    # Max and Min hand NaN on, as PyTorch does; Clip does not say.
    return lambda n, x, bound: n.op(op_type, *_same_dtype(n, x, bound))


def _clamp(n: Nodes, x: ir.Value, low: Any = None, high: Any = None) -> ir.Value:
    floored = x if low is None else n.op("Max", x, low)
    return floored if high is None else n.op("Min", floored, high)


def _silu(n: Nodes, x: ir.Value) -> ir.Value:
    return n.op("Mul", x, n.op("Sigmoid", x))


def _gelu(n: Nodes, x: ir.Value, approximate: str = "none") -> ir.Value:
    if approximate == "tanh":
        cubed = n.op("Mul", n.op("Mul", x, x), x)
        inner = n.op("Add", x, n.op("Mul", cubed, 0.044715))
        curve = n.op("Tanh", n.op("Mul", inner, math.sqrt(2 / math.pi)))
    else:
        curve = n.op("Erf", n.op("Mul", x, math.sqrt(0.5)))
    return n.op("Mul", n.op("Mul", x, 0.5), n.op("Add", curve, 1.0))


def _softplus(n: Nodes, x: ir.Value, beta: float = 1, threshold: float = 20) -> ir.Value:
    scaled = _scaled(n, x, beta)
    # Beyond the threshold the exponential could overflow, and x is the answer.
    small = n.op("Softplus", n.op("Min", scaled, threshold))
    linear = n.op("Greater", scaled, threshold, dtype=ir.DataType.BOOL)
    return n.where(linear, x, _scaled(n, small, 1 / beta))


def _expm1(n: Nodes, x: ir.Value) -> ir.Value:
    return n.op("Sub", n.op("Exp", x), 1.0)


def _elu(
    n: Nodes, x: ir.Value, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> ir.Value:
    negative = _expm1(n, n.op("Min", _scaled(n, x, input_scale), 0.0))
    positive = n.op("Greater", x, 0.0, dtype=ir.DataType.BOOL)
    return n.where(positive, _scaled(n, x, scale), _scaled(n, negative, alpha * scale))


def _mish(n: Nodes, x: ir.Value) -> ir.Value:
    return n.op("Mul", x, n.op("Tanh", _softplus(n, x)))


def _hard_sigmoid(n: Nodes, x: ir.Value) -> ir.Value:
    return n.op("Div", _clamp(n, n.op("Add", x, 3.0), 0.0, 6.0), 6.0)


def _leaky_relu(n: Nodes, x: ir.Value, slope: Any = 0.01) -> ir.Value:
    x, slope = _same_dtype(n, x, slope)
    positive = n.op("Greater", x, 0.0, dtype=ir.DataType.BOOL)
    return n.where(positive, x, n.op("Mul", x, slope))


def _threshold(n: Nodes, x: ir.Value, threshold: float, value: float) -> ir.Value:
    below = n.op("LessOrEqual", x, threshold, dtype=ir.DataType.BOOL)
    return n.where(below, value, x)


def _greater(n: Nodes, x: ir.Value, other: float) -> ir.Value:
    return n.op("Greater", x, other, dtype=ir.DataType.BOOL)


def _sign(n: Nodes, x: ir.Value) -> ir.Value:
    # Sign keeps NaN in ONNX Runtime, where ATen gives 0.
    below = n.op("Less", x, 0.0, dtype=ir.DataType.BOOL)
    signs = [n.cast(side, promote(x)) for side in (_greater(n, x, 0.0), below)]
    return n.op("Sub", *signs)


def _where(n: Nodes, condition: ir.Value, yes: Any, no: Any) -> ir.Value:
    return n.where(condition, *_same_dtype(n, yes, no))


def _pow(n: Nodes, x: ir.Value, exponent: float) -> ir.Value:
    return n.op("Mul", x, x) if exponent == 2 else n.op("Pow", x, exponent)


def _to_copy(n: Nodes, x: ir.Value, dtype: str | None = None, **layout: Any) -> ir.Value:
    # Devices and layouts are the runtime's.
    return x if dtype is None else n.cast(x, from_torch_dtype(getattr(torch, dtype)))


def _reduction(op_type: str) -> Operation:
    def write(
        n: Nodes, x: ir.Value, dim: Any, keepdim: bool = False, dtype: str | None = None
    ) -> ir.Value:
        axes = [dim] if isinstance(dim, int) else list(dim or [])
        return n.op(op_type, _to_copy(n, x, dtype), axes, keepdims=int(keepdim))

    return write


OPERATIONS: Mapping[str, Operation] = {
    **{f"aten.{name}.default": _unary(op_type) for name, op_type in UNARY.items()},
    **{
        f"aten.{name}.{overload}": _arithmetic(op_type)
        for name, op_type in ARITHMETIC.items()
        for overload in ("Tensor", "Scalar")
    },
    "aten._prelu_kernel.default": _leaky_relu,
    "aten._to_copy.default": _to_copy,
    "aten.celu.default": lambda n, x, alpha=1: _elu(n, x, alpha, 1, 1 / alpha),
    "aten.clamp.default": _clamp,
    "aten.clamp_max.default": _extremum("Min"),
    "aten.clamp_min.default": _extremum("Max"),
    "aten.elu.default": _elu,
    "aten.expm1.default": _expm1,
    "aten.gelu.default": _gelu,
    "aten.gt.Scalar": _greater,
    "aten.hardsigmoid.default": _hard_sigmoid,
    "aten.hardswish.default": lambda n, x: n.op("Mul", x, _hard_sigmoid(n, x)),
    "aten.hardtanh.default": lambda n, x, low=-1, high=1: _clamp(n, x, low, high),
    "aten.leaky_relu.default": _leaky_relu,
    "aten.log1p.default": lambda n, x: n.op("Log", n.op("Add", x, 1.0)),
    "aten.maximum.default": _extremum("Max"),
    "aten.mean.dim": _reduction("ReduceMean"),
    "aten.minimum.default": _extremum("Min"),
    "aten.mish.default": _mish,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.rsqrt.default": lambda n, x: n.op("Reciprocal", n.op("Sqrt", x)),
    "aten.rsub.Scalar": _rsub,
    "aten.sign.default": _sign,
    "aten.silu.default": _silu,
    "aten.softplus.default": _softplus,
    "aten.square.default": lambda n, x: n.op("Mul", x, x),
    "aten.sum.dim_IntList": _reduction("ReduceSum"),
    "aten.threshold.default": _threshold,
    "aten.where.self": _where,
}
"""By ATen overload, how it is written."""
