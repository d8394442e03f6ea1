"""Every operation that can be printed computes what ATen computes."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx import ops as ops  # registers the ops
from modes_fx.kernels import reference
from modes_fx.kernels.cpu.printer import OPERATIONS, Printer
from modes_fx.kernels.epilogue import ATEN_WHITELIST, MATMUL, Body, Step

REDUCTIONS = {"aten.mean.dim", "aten.sum.dim_IntList"}

ARGUMENTS = {
    "aten.add.Scalar": (0.5,),
    "aten.add.Tensor": ("%0",),
    "aten.celu.default": (0.7,),
    "aten.clamp.default": (-0.4, 0.6),
    "aten.clamp_max.default": (0.3,),
    "aten.clamp_min.default": (-0.3,),
    "aten.div.Scalar": (3.0,),
    "aten.div.Tensor": (1.7,),
    "aten.elu.default": (0.5, 1.2),
    "aten.hardtanh.default": (),
    "aten.leaky_relu.default": (),
    "aten.maximum.default": ("%0",),
    "aten.minimum.default": ("%0",),
    "aten.mul.Scalar": (2.0,),
    "aten.mul.Tensor": ("%0",),
    "aten.pow.Tensor_Scalar": (3,),
    "aten._prelu_kernel.default": ("p2",),
    "aten.rsub.Scalar": (1.0,),
    "aten.sub.Scalar": (0.1,),
    "aten.sub.Tensor": (0.1,),
    "aten.softplus.default": (2.0, 5.0),
    "aten.threshold.default": (0.2, -0.7),
}
POSITIVE = {"aten.log1p.default", "aten.rsqrt.default", "aten.sqrt.default"}


def body_of(op: str) -> tuple[Body, bool]:
    """A body with one operation in its middle, behind ``abs`` where that takes no other."""
    first = "aten.abs.default" if op in POSITIVE else "aten.tanh.default"
    steps = [Step(MATMUL, ("x", "p0", True)), Step(first, ("%0",))]
    if op == "aten.where.self":
        steps += [Step("aten.gt.Scalar", ("%1", 0.1)), Step(op, ("%2", "%1", "%0"))]
    elif op == "aten.gt.Scalar":
        steps += [Step(op, ("%1", 0.1)), Step("aten.where.self", ("%2", "%1", "%0"))]
    else:
        kwargs = (("dtype", "float32"),) if op == "aten._to_copy.default" else ()
        steps += [Step(op, ("%1", *ARGUMENTS.get(op, ())), kwargs)]
    needs_slope = "prelu" in op
    steps += [Step(MATMUL, (f"%{len(steps) - 1}", "p1", True))]
    return Body((True, True, *([False] if needs_slope else ())), tuple(steps)), needs_slope


def test_all_elementwise_operations_of_bodies_can_be_printed() -> None:
    assert ATEN_WHITELIST - OPERATIONS == REDUCTIONS


@pytest.mark.parametrize("op", sorted(ATEN_WHITELIST - REDUCTIONS))
def test_an_operation_computes_what_aten_computes(op) -> None:
    body, needs_slope = body_of(op)
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(2, 32, 16, generator=generator),
        torch.randn(2, 16, 32, generator=generator),
    ]
    params += [torch.tensor([0.3])] if needs_slope else []
    x = torch.randn(9, 16, generator=generator)
    index, weight = torch.arange(9)[:, None] % 2, torch.ones(9, 1)
    got = torch.ops.modes_fx.experts(x, index, weight, params, body.to_json(), 2)
    exact = reference.experts(x, index, weight, params, body, 2)
    assert_close(got, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "Vec(1.0f)"),
        (-0.5, "Vec(-0.5f)"),
        (1e-30, "Vec(1e-30f)"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_constants(value, text) -> None:
    assert Printer().constant(value) == text


def test_constants_without_digits_and_scaled_operands() -> None:
    printer = Printer()
    assert "-std::numeric_limits<float>::infinity()" in printer.constant(-torch.inf)
    assert "quiet_NaN" in printer.constant(torch.nan)
    printer.operation("aten.add.Tensor", ["a", "b"], {"alpha": 2})
    printer.operation("aten.rsub.Scalar", ["a", "b"], {"alpha": 2})
    assert printer.lines == [
        "const Vec t0 = a + (b * Vec(2.0f));",
        "const Vec t1 = b - (a * Vec(2.0f));",
    ]
