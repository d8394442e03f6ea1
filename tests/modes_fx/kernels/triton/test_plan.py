"""Taking bodies apart, and the reasons why some cannot be."""

import pytest
import torch

from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.kernels.triton.plan import (
    ParameterFacts,
    Product,
    UnsupportedBodyError,
    Value,
    make_plan,
)
from tests.modes_fx.kernels.triton.bodies import BODIES, Sizes, shapes

SIZES = Sizes(T=5, K=2, E=4, H=16, I=8)


def plan_of(body: Body, given: list[tuple[int, ...]], dtype=torch.bfloat16):
    return make_plan(body, [ParameterFacts(s, dtype) for s in given], dtype, torch.float32, SIZES.H)


@pytest.mark.parametrize("name", BODIES)
def test_sizes_of_every_body(name) -> None:
    plan = plan_of(BODIES[name](SIZES), shapes(name, SIZES))
    assert (plan.hidden, plan.intermediate, plan.output) == (SIZES.H, SIZES.I, SIZES.H)


def test_products_and_the_dtypes_that_torch_gives_each_value() -> None:
    name = "two_products_weighted_input"
    plan = plan_of(BODIES[name](SIZES), shapes(name, SIZES))
    assert plan.ups == (Product("%1", "%0", 0, True, 1), Product("%3", "%0", 2, False, None))
    assert plan.down == Product("%5", "%4", 3, False, 4)
    assert plan.values["%0"] == Value(SIZES.H, torch.float32)  # bfloat16 times a float32 weight


def matmul(rows: str, param: int) -> Step:
    return Step(MATMUL, (rows, f"p{param}", True))


SQUARE = (SIZES.E, SIZES.H, SIZES.H)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((matmul("x", 0),), "1 product"),
        ((matmul("x", 0), matmul("%0", 1), matmul("%1", 2)), "same rows"),
        (
            (matmul("x", 0), Step("aten.silu.default", ("x",)), matmul("%1", 1), matmul("%2", 2)),
            "same rows",
        ),
        ((matmul("x", 0), matmul("x", 1), matmul("%1", 2)), "does not read all"),
        ((matmul("x", 0), matmul("%0", 1), Step("aten.silu.default", ("%0",))), "last product"),
    ],
)
def test_what_is_not_two_stages_is_refused(steps, reason) -> None:
    with pytest.raises(UnsupportedBodyError, match=reason):
        plan_of(Body((True,) * 3, steps), [SQUARE] * 3)
