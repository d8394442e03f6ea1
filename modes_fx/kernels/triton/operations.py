"""How each ATen operation of a body is written in Triton, on float32 values.

NaN goes through everything, as it does in torch, so that a model's NaN stays visible. Triton's
interpreter has no libdevice, so tanh and its like are written with what ``tl`` itself offers.
"""

import math
from collections.abc import Callable
from typing import Any

from modes_fx.kernels.triton.plan import UnsupportedBodyError

Operand = str | float | int | bool | None


def write(op: str, args: tuple[Operand, ...], kwargs: dict[str, Any]) -> str:
    """Return the Triton expression of one operation.

    Args:
        op: an overload such as ``aten.silu.default``.
        args: names of Triton values, or constants.
        kwargs: constants by name.

    Raises:
        UnsupportedBodyError: no such expression is known.
    """
    check_known(op)
    try:
        return OPERATIONS[op](*args, **kwargs)
    except TypeError as error:
        raise UnsupportedBodyError(f"{op} is called in a way that is not known: {error}") from error


def check_known(op: str) -> None:
    """Refuse an operation without an expression.

    Raises:
        UnsupportedBodyError: there is none.
    """
    if op not in OPERATIONS:
        raise UnsupportedBodyError(f"no Triton expression is known for {op}")


def literal(value: Operand) -> str:
    """Write a constant, or the name of a value, so that Triton computes in float32."""
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]  # None never reaches an arithmetic operand
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def _binary(sign: str) -> Callable[..., str]:
    return lambda a, b: f"{literal(a)} {sign} {literal(b)}"


def _sum(sign: str) -> Callable[..., str]:
    def write_sum(a: Operand, b: Operand, alpha: float = 1) -> str:
        scaled = literal(b) if alpha == 1 else f"{literal(alpha)} * {literal(b)}"
        return f"{literal(a)} {sign} {scaled}"

    return write_sum


def _extremum(name: str) -> Callable[[Operand, Operand], str]:
    nan = "propagate_nan=tl.PropagateNan.ALL"
    return lambda a, b: f"tl.{name}({literal(a)}, {literal(b)}, {nan})"


_minimum, _maximum = _extremum("minimum"), _extremum("maximum")


def _clamp(a: str, low: Operand = None, high: Operand = None) -> str:
    a = a if low is None else _maximum(a, low)
    return a if high is None else _minimum(a, high)


def _relu(a: str) -> str:
    return _maximum(a, 0.0)


def _tanh(a: str) -> str:
    return f"(2.0 * tl.sigmoid(2.0 * ({a})) - 1.0)"


def _gelu(a: str, approximate: str = "none") -> str:
    if approximate == "none":
        return f"0.5 * {a} * (1.0 + tl.erf({a} * {math.sqrt(0.5)!r}))"
    inner = f"{2 * math.sqrt(2 / math.pi)!r} * ({a} + 0.044715 * {a} * {a} * {a})"
    return f"{a} * tl.sigmoid({inner})"


def _softplus(a: str, beta: float = 1, threshold: float = 20) -> str:
    soft = f"tl.log(1.0 + tl.exp({_minimum(f'{literal(beta)} * {a}', threshold)}))"
    return f"tl.where({literal(beta)} * {a} > {literal(threshold)}, {a}, {soft} / {literal(beta)})"


def _elu(a: str, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    negative = f"{literal(alpha)} * (tl.exp({literal(input_scale)} * {_minimum(a, 0.0)}) - 1.0)"
    return f"{literal(scale)} * tl.where({a} > 0.0, {a}, {negative})"


def _celu(a: str, alpha: float = 1) -> str:
    return _elu(a, alpha, 1.0, 1 / alpha)


def _leaky(a: str, slope: Operand = 0.01) -> str:
    return f"tl.where({a} > 0.0, {a}, {literal(slope)} * {a})"


def _hard_gate(a: str) -> str:
    return _clamp(f"({a} + 3.0)", 0.0, 6.0)


def _power(a: str, exponent: float) -> str:
    if exponent in (1, 2, 3, 4):
        return " * ".join([a] * int(exponent))
    if exponent in (0.5, -0.5, -1):
        return {0.5: f"tl.sqrt({a})", -0.5: f"tl.rsqrt({a})", -1: f"1.0 / {a}"}[exponent]
    raise UnsupportedBodyError(f"no Triton expression is known for the power {exponent}")


def _cast(a: str, dtype: str = "float32") -> str:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnsupportedBodyError(f"it casts to {dtype}")
    return f"{a}.to(tl.float32)"  # computed no less exactly than asked for


OPERATIONS: dict[str, Callable[..., str]] = {
    "aten._prelu_kernel.default": lambda a, slope: _leaky(a, slope),
    "aten._to_copy.default": _cast,
    "aten.abs.default": lambda a: f"tl.abs({a})",
    "aten.add.Scalar": _sum("+"),
    "aten.add.Tensor": _sum("+"),
    "aten.celu.default": _celu,
    "aten.clamp.default": _clamp,
    "aten.clamp_max.default": _minimum,
    "aten.clamp_min.default": _maximum,
    "aten.div.Scalar": _binary("/"),
    "aten.div.Tensor": _binary("/"),
    "aten.elu.default": _elu,
    "aten.erf.default": lambda a: f"tl.erf({a})",
    "aten.exp.default": lambda a: f"tl.exp({a})",
    "aten.expm1.default": lambda a: f"tl.exp({a}) - 1.0",
    "aten.gelu.default": _gelu,
    "aten.gt.Scalar": lambda a, b: f"{a} > {literal(b)}",
    "aten.hardsigmoid.default": lambda a: f"{_hard_gate(a)} / 6.0",
    "aten.hardswish.default": lambda a: f"{a} * {_hard_gate(a)} / 6.0",
    "aten.hardtanh.default": lambda a, low=-1.0, high=1.0: _clamp(a, low, high),
    "aten.leaky_relu.default": _leaky,
    "aten.log1p.default": lambda a: f"tl.log(1.0 + {a})",
    "aten.maximum.default": _maximum,
    "aten.minimum.default": _minimum,
    "aten.mish.default": lambda a: f"{a} * {_tanh(_softplus(a))}",
    "aten.mul.Scalar": _binary("*"),
    "aten.mul.Tensor": _binary("*"),
    "aten.neg.default": lambda a: f"-{a}",
    "aten.pow.Tensor_Scalar": _power,
    "aten.relu.default": _relu,
    "aten.rsqrt.default": lambda a: f"tl.rsqrt({a})",
    "aten.rsub.Scalar": lambda a, b, alpha=1: _sum("-")(b, a, alpha),
    "aten.sigmoid.default": lambda a: f"tl.sigmoid({a})",
    "aten.sign.default": lambda a: f"tl.where({a} > 0.0, 1.0, tl.where({a} < 0.0, -1.0, {a}))",
    "aten.silu.default": lambda a: f"{a} * tl.sigmoid({a})",
    "aten.softplus.default": _softplus,
    "aten.sqrt.default": lambda a: f"tl.sqrt({a})",
    "aten.square.default": lambda a: f"{a} * {a}",
    "aten.sub.Scalar": _sum("-"),
    "aten.sub.Tensor": _sum("-"),
    "aten.tanh.default": _tanh,
    "aten.threshold.default": lambda a, threshold, value: (
        f"tl.where({a} <= {literal(threshold)}, {literal(value)}, {a})"
    ),
    "aten.where.self": lambda condition, a, b: f"tl.where({condition}, {literal(a)}, {literal(b)})",
}
"""By overload. Row reductions (mean, sum) are left out: a tile does not see whole rows."""
