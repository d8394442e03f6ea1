"""How bodies are split for the kernel, and near misses that are not."""

import pytest

from modes_fx.kernels.cpu.plan import Stream, UnfusableError, Vector, View, plan
from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step
from tests.bodies import FORMS, interleaved_with_biases, separate_projections, weighted_input

H, WIDTH = 8, 4
UP, DOWN = Step(MATMUL, ("x", "p0", True)), Step(MATMUL, ("%1", "p1", True))
SILU = Step("aten.silu.default", ("%0",))


@pytest.mark.parametrize(
    ("form", "layout"),
    [
        ("swiglu", "apart"),
        ("interleaved_with_biases", "interleaved"),
        ("separate_projections", "apart"),
        ("squared_relu", "one"),
        ("weighted_input", "apart"),
    ],
)
def test_the_forms_that_models_have(form, layout) -> None:
    body, _ = FORMS[form](H, WIDTH)
    assert plan(body).layout == layout


def test_a_slice_commutes_with_a_bias_of_all_columns() -> None:
    parts = plan(interleaved_with_biases(H, WIDTH)[0])
    odd, even = View(1, 2), View(0, 2)
    assert parts.streams == (Stream(0, False, odd), Stream(0, False, even))
    assert parts.middle.vectors == (Vector(1, odd), Vector(1, even))
    assert parts.tail.vectors == (Vector(3, View()),)


def test_a_slice_of_a_slice_is_one_view() -> None:
    slices = (Step(SLICE, ("%0", 2, 10, 2)), Step(SLICE, ("%1", 1, 3, 1)))
    down = Step(MATMUL, ("%2", "p1", True))
    with pytest.raises(UnfusableError, match=r"columns p0\[4::2\]"):
        plan(Body((True, True), (UP, *slices, down)))


def test_a_bias_of_the_last_product_belongs_to_the_tail() -> None:
    parts = plan(separate_projections(H, WIDTH)[0])
    assert parts.tail.vectors == (Vector(3, View()),)
    assert "y + v[0]" in parts.tail.lines[0]


def test_a_weight_on_the_input_is_a_prologue() -> None:
    assert plan(weighted_input(H, WIDTH)[0]).prologue.lines == ("const Vec t0 = x * w;",)


@pytest.mark.parametrize(
    ("reason", "steps"),
    [
        ("1 matrix products", (UP,)),
        (
            "more than two products one after another",
            (UP, SILU, DOWN, Step(MATMUL, ("%2", "p0", True))),
        ),
        ("does not go through all", (UP, SILU, DOWN, Step("aten.neg.default", ("%1",)))),
        (
            "different rows",
            (
                UP,
                Step("aten.neg.default", ("x",)),
                Step(MATMUL, ("%1", "p0", True)),
                Step("aten.mul.Tensor", ("%0", "%2")),
                Step(MATMUL, ("%3", "p1", True)),
            ),
        ),
        (
            "reads x again",
            (UP, SILU, DOWN, Step("aten.add.Tensor", ("%2", "x"))),
        ),
        (
            "in more than one place",
            (UP, SILU, DOWN, Step("aten.add.Tensor", ("%2", "%0"))),
        ),
        (
            "no vectorised form",
            (UP, Step("aten.mean.dim", ("%0", (-1,), True)), DOWN),
        ),
    ],
)
def test_near_misses_say_why(reason, steps) -> None:
    with pytest.raises(UnfusableError, match=reason):
        plan(Body((True, True), steps))
