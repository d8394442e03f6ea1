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


def steps_of(op: str, value: str, positive: str, place: int) -> list[Step]:
    """One operation on a value, as step ``place`` of a body; on its absolute one where it must."""
    if op == "aten.where.self":
        return [Step("aten.gt.Scalar", (value, 0.1)), Step(op, (f"%{place}", value, "%0"))]
    if op == "aten.gt.Scalar":
        return [Step(op, (value, 0.1)), Step("aten.where.self", (f"%{place}", value, "%0"))]
    kwargs = (("dtype", "float32"),) if op == "aten._to_copy.default" else ()
    given = positive if op in POSITIVE else value
    return [Step(op, (given, *ARGUMENTS.get(op, ())), kwargs)]


def body_of(ops: list[str]) -> tuple[Body, bool]:
    """A body whose middle adds up what the operations give; a build for each would take minutes."""
    steps = [Step(MATMUL, ("x", "p0", True)), Step("aten.tanh.default", ("%0",))]
    steps += [Step("aten.abs.default", ("%1",))]
    total = ""
    for op in ops:
        steps += steps_of(op, "%1", "%2", len(steps))
        own = f"%{len(steps) - 1}"
        if total:
            steps.append(Step("aten.add.Tensor", (total, own)))
        total = f"%{len(steps) - 1}"
    needs_slope = any("prelu" in op for op in ops)
    steps += [Step(MATMUL, (total, "p1", True))]
    return Body((True, True, *([False] if needs_slope else ())), tuple(steps)), needs_slope


PRINTED = sorted(ATEN_WHITELIST - REDUCTIONS)
GROUPS = [PRINTED[i : i + 7] for i in range(0, len(PRINTED), 7)]


def test_all_elementwise_operations_of_bodies_can_be_printed() -> None:
    assert ATEN_WHITELIST - OPERATIONS == REDUCTIONS


@pytest.mark.parametrize("group", GROUPS, ids=lambda ops: " ".join(op.split(".")[1] for op in ops))
def test_operations_compute_what_aten_computes(group) -> None:
    body, needs_slope = body_of(group)
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
