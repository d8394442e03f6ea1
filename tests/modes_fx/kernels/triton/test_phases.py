"""Columns asked for at the end of a phase, followed back through slices to what holds them."""

import pytest
import torch

from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step
from modes_fx.kernels.triton.phases import Stream, write_phase
from modes_fx.kernels.triton.plan import ParameterFacts, UnsupportedBodyError, make_plan

E, H, WIDTH = 4, 16, 8
UP = Step(MATMUL, ("x", "p0", True))


def middle_of(*steps: Step, columns: int = 2 * WIDTH, extra=(1,), per_expert=False):
    """The middle of a body whose last step before the down-product is the last of ``steps``."""
    down = Step(MATMUL, (f"%{len(steps)}", "p1", True))
    body = Body((True, True, per_expert), (UP, *steps, down))
    shapes = ((E, columns, H), (E, H, WIDTH), extra)
    facts = [ParameterFacts(shape, torch.float32) for shape in shapes]
    plan = make_plan(body, facts, torch.float32, torch.float32, H)
    return write_phase(plan, plan.down.rows, {plan.ups[0].value: ""})


def test_slices_become_streams() -> None:
    phase = middle_of(
        Step(SLICE, ("%0", 0, 16, 2)),
        Step(SLICE, ("%0", 1, 16, 2)),
        Step("aten.mul.Tensor", ("%1", "%2")),
    )
    assert phase.streams == [Stream("%0", 0, 2), Stream("%0", 1, 2)]
    assert phase.lines == ["t0 = s0 * s1"]


def test_slices_of_slices_compose_through_what_is_between() -> None:
    phase = middle_of(
        Step(SLICE, ("%0", 3, 32, 1)),
        Step("aten.silu.default", ("%1",)),
        Step(SLICE, ("%2", 1, 29, 3)),
        Step(SLICE, ("%3", 0, 8, 1)),
        columns=32,
    )
    assert phase.streams == [Stream("%0", 4, 3)]


def test_a_parameter_is_loaded_at_the_columns_that_are_asked_for() -> None:
    phase = middle_of(
        Step("aten.add.Tensor", ("%0", "p2")),
        Step(SLICE, ("%1", 1, 16, 2)),
        extra=(E, 2 * WIDTH),
        per_expert=True,
    )
    assert "vectors[0] + expert * 16 + 2 * columns + 1, mask=inside" in phase.lines[0]
    assert phase.vectors == [2]


def test_one_number_for_all_columns_is_loaded_once() -> None:
    phase = middle_of(Step("aten._prelu_kernel.default", ("%0", "p2")), columns=WIDTH)
    assert phase.lines[0] == "t0 = tl.load(vectors[0] + 0).to(tl.float32)"


def test_what_a_phase_cannot_see_is_refused() -> None:
    both = Step("aten.mul.Tensor", ("%0", "%1"))
    with pytest.raises(UnsupportedBodyError, match="reads x where"):
        middle_of(Step(SLICE, ("x", 0, WIDTH, 1)), both, columns=WIDTH)
    with pytest.raises(UnsupportedBodyError, match="repeats a single column"):
        middle_of(Step(SLICE, ("%0", 0, 1, 1)), both, columns=WIDTH)
    with pytest.raises(UnsupportedBodyError, match="has 3 dims"):
        middle_of(Step("aten.mul.Tensor", ("%0", "p2")), columns=WIDTH, extra=(4, 2, WIDTH))
