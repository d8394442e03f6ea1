"""Elementwise ATen operations as C++ over vectors of float32."""

import math
from typing import Any

BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

CALLS = {
    f"aten.{name}": name.partition(".")[0].replace("_prelu_kernel", "leaky_relu")
    for name in (
        "abs.default",
        "celu.default",
        "clamp_max.default",
        "clamp_min.default",
        "elu.default",
        "erf.default",
        "exp.default",
        "expm1.default",
        "gt.Scalar",
        "hardsigmoid.default",
        "hardswish.default",
        "hardtanh.default",
        "leaky_relu.default",
        "log1p.default",
        "maximum.default",
        "minimum.default",
        "mish.default",
        "neg.default",
        "pow.Tensor_Scalar",
        "_prelu_kernel.default",
        "relu.default",
        "rsqrt.default",
        "sigmoid.default",
        "sign.default",
        "silu.default",
        "softplus.default",
        "sqrt.default",
        "square.default",
        "tanh.default",
        "threshold.default",
        "where.self",
    )
}
"""ATen overloads that are a function of activations.h, or of ATen's vectors."""

DEFAULTS: dict[str, tuple[float, ...]] = {
    "aten.celu.default": (1.0,),
    "aten.elu.default": (1.0, 1.0, 1.0),
    "aten.hardtanh.default": (-1.0, 1.0),
    "aten.leaky_relu.default": (0.01,),
    "aten.softplus.default": (1.0, 20.0),
}
"""What ATen takes for trailing arguments that were left out."""

ARITHMETIC = {
    f"aten.{name}.{overload}": symbol
    for name, symbol in BINARY.items()
    for overload in ("Tensor", "Scalar")
}

OPERATIONS = frozenset(
    {*CALLS, *ARITHMETIC, "aten._to_copy.default", "aten.clamp.default", "aten.gelu.default"}
    | {"aten.rsub.Scalar"}
)
"""What can be printed."""


class Printer:
    """Collects statements, each of which defines one vector.

    Attributes:
        lines: the statements.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.lines: list[str] = []

    def constant(self, value: Any) -> str:
        """Return a number as C++; what is no number (None, a flag) stays for the operation."""
        if value is None or isinstance(value, bool):
            return str(value)
        number = float(value)
        if math.isnan(number):
            return "Vec(std::numeric_limits<float>::quiet_NaN())"
        if math.isinf(number):
            sign = "-" if number < 0 else ""
            return f"Vec({sign}std::numeric_limits<float>::infinity())"
        return f"Vec({number!r}f)"

    def operation(self, op: str, args: list[str], kwargs: dict[str, Any]) -> str:
        """Define the result of one of :data:`OPERATIONS` and return its name."""
        if op == "aten._to_copy.default":
            return args[0]  # values are float32 between the products, which rounds less
        self.lines.append(f"const Vec t{len(self.lines)} = {_expression(op, args, kwargs)};")
        return f"t{len(self.lines) - 1}"


def _expression(op: str, args: list[str], kwargs: dict[str, Any]) -> str:
    if op in ARITHMETIC or op == "aten.rsub.Scalar":
        return _arithmetic(op, args, kwargs.get("alpha", 1))
    if op == "aten.clamp.default":
        low, high = (*args[1:], "None", "None")[:2]
        floored = args[0] if low == "None" else f"clamp_min({args[0]}, {low})"
        return floored if high == "None" else f"clamp_max({floored}, {high})"
    if op == "aten.gelu.default":
        return f"gelu_{kwargs.get('approximate', 'none')}({args[0]})"
    if op == "aten.pow.Tensor_Scalar" and args[1] == "Vec(2.0f)":
        return f"square({args[0]})"
    defaults = [f"Vec({value!r}f)" for value in DEFAULTS.get(op, ())]
    given = len(args) - 1
    return f"{CALLS[op]}({', '.join([*args, *defaults[given:]])})"


def _arithmetic(op: str, args: list[str], alpha: float) -> str:
    left, right = reversed(args[:2]) if "rsub" in op else args[:2]
    if "rsub" in op:
        scaled = right if alpha == 1 else f"({right} * Vec({float(alpha)!r}f))"
        return f"{left} - {scaled}"
    scaled = right if alpha == 1 else f"({right} * Vec({float(alpha)!r}f))"
    return f"{left} {ARITHMETIC[op]} {scaled}"
