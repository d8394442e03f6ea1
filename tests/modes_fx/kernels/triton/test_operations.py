"""Every operation that a body may contain, against torch, on numbers of all kinds."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx.kernels.epilogue import ATEN_WHITELIST, MATMUL, Body, Step
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.operations import OPERATIONS, literal, write
from modes_fx.kernels.triton.plan import UnsupportedBodyError

REDUCTIONS = {"aten.mean.dim", "aten.sum.dim_IntList"}
ARGUMENTS = {
    "aten.add.Scalar": [("x", 0.7)],
    "aten.add.Tensor": [("x", 2), ("x", "w")],
    "aten.celu.default": [("x",), ("x", 0.5)],
    "aten.clamp.default": [("x", -0.5, 0.5), ("x", None, 0.3), ("x", -0.2)],
    "aten.clamp_max.default": [("x", 0.3)],
    "aten.clamp_min.default": [("x", -0.2)],
    "aten.div.Scalar": [("x", 3.0)],
    "aten.div.Tensor": [("x", "w")],
    "aten.elu.default": [("x",), ("x", 1.67, 1.05, 1)],
    "aten.hardtanh.default": [("x",), ("x", -0.3, 0.4)],
    "aten.leaky_relu.default": [("x",), ("x", 0.2)],
    "aten.maximum.default": [("x", "w")],
    "aten.minimum.default": [("x", "w")],
    "aten.mul.Scalar": [("x", -1.5)],
    "aten.mul.Tensor": [("x", "w")],
    "aten.pow.Tensor_Scalar": [("x", 2), ("x", 3)],
    "aten.rsub.Scalar": [("x", 1.0)],
    "aten.softplus.default": [("x",), ("x", 2.0, 1.0)],
    "aten.sub.Scalar": [("x", 0.1)],
    "aten.sub.Tensor": [("x", "w")],
    "aten.threshold.default": [("x", 0.1, -1.0)],
}
POSITIVE = {"aten.log1p.default", "aten.rsqrt.default", "aten.sqrt.default"}
OTHERWISE_TESTED = {"aten._prelu_kernel.default", "aten.gt.Scalar", "aten.where.self"}


def test_all_but_reductions_of_rows_are_known() -> None:
    assert OPERATIONS.keys() == ATEN_WHITELIST - REDUCTIONS


CASES = [
    (op, args)
    for op in sorted(OPERATIONS.keys() - OTHERWISE_TESTED)
    for args in ARGUMENTS.get(op, [("x",)])
]


@pytest.mark.parametrize(("op", "args"), CASES, ids=str)
def test_an_operation_computes_what_torch_computes(op, args, device) -> None:
    """One token, one expert, matrices that change nothing: what is left is the operation."""
    n = 16
    x = torch.tensor([[-30.0, -3.0, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.25, 0.5, 1.0, 2.0, 3.0, 25.0]])
    x = torch.cat((x, torch.linspace(-2, 2, n - x.shape[1])[None]), dim=1)
    x = x.abs() if op in POSITIVE else x
    w = torch.tensor([[0.75]])
    names = tuple("%0" if arg == "x" else arg for arg in args)
    steps = (Step(MATMUL, ("x", "p0", True)), Step(op, names), Step(MATMUL, ("%1", "p1", True)))
    eye = torch.eye(n)[None]
    got = launch.experts(
        x.to(device),
        torch.zeros(1, 1, dtype=torch.long, device=device),
        w.to(device),
        [eye.to(device)] * 2,
        Body((True, True), steps).to_json(),
        1,
    )
    namespace, name, overload = op.split(".")
    operation = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    exact = operation(*({"x": x, "w": w}.get(arg, arg) for arg in args))
    exact = torch.where(exact.isinf(), torch.nan, exact)  # 0 * inf in the second product
    got = torch.where(got.cpu().isfinite(), got.cpu(), torch.nan)
    if exact.isnan().any():
        assert got.isnan().all()  # and NaN there spreads to the row
    else:
        assert_close(got, exact, rtol=1e-5, atol=1e-6)


def test_constants_are_written_as_float32() -> None:
    assert (literal(2), literal(-0.5), literal("t0")) == ("2.0", "-0.5", "t0")
    assert literal(float("inf")) == 'float("inf")'


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "reason"),
    [
        ("aten.sort.default", ("t0",), {}, "no Triton expression is known for aten.sort"),
        ("aten.pow.Tensor_Scalar", ("t0", 2.5), {}, "the power 2.5"),
        ("aten._to_copy.default", ("t0",), {"dtype": "int32"}, "casts to int32"),
        ("aten.gelu.default", ("t0", "t1", "t2"), {}, "in a way that is not known"),
    ],
)
def test_what_cannot_be_written_is_refused(op, args, kwargs, reason) -> None:
    with pytest.raises(UnsupportedBodyError, match=reason):
        write(op, args, kwargs)


def test_a_choice_between_two_values_and_a_learned_slope(device) -> None:
    x = torch.linspace(-2, 2, 16)[None]
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten._prelu_kernel.default", ("%0", "p2")),
        Step("aten.gt.Scalar", ("%0", 1.0)),
        Step("aten.where.self", ("%2", "%0", "%1")),
        Step(MATMUL, ("%3", "p1", True)),
    )
    slope = torch.tensor([0.3])
    params = [torch.eye(16, device=device)[None]] * 2 + [slope.to(device)]
    body = Body((True, True, False), steps).to_json()
    index = torch.zeros(1, 1, dtype=torch.long, device=device)
    got = launch.experts(x.to(device), index, torch.ones(1, 1, device=device), params, body, 1)
    assert_close(got.cpu(), torch.where(x > 0, x, 0.3 * x))
