"""The body: canonical JSON, a whitelist, and an interpreter."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from modes_fx.kernels.epilogue import ATEN_WHITELIST, MATMUL, SLICE, Body, BodyError, Step

SWIGLU = Body(
    per_expert=(True, True),
    steps=(
        Step(MATMUL, ("x", "p0", True)),
        Step(SLICE, ("%0", 0, 4, 1)),
        Step("aten.silu.default", ("%1",)),
        Step(SLICE, ("%0", 4, 8, 1)),
        Step("aten.mul.Tensor", ("%2", "%3")),
        Step(MATMUL, ("%4", "p1", True)),
        Step("aten.mul.Tensor", ("%5", "w")),
    ),
)


def one_expert(rows, weight, transposed, bias):
    assert bias is None
    return rows @ (weight[0].T if transposed else weight[0])


def test_swiglu_computes_what_it_says() -> None:
    x, w = torch.randn(3, 6), torch.rand(3, 1)
    up, down = torch.randn(1, 8, 6), torch.randn(1, 6, 4)
    gate, value = (x @ up[0].T).chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(gate) * value) @ down[0].T * w
    got = SWIGLU.run(x, w, [up, down], torch.zeros(3, dtype=torch.long), one_expert)
    assert_close(got, expected)


def test_per_expert_vectors_are_gathered_row_by_row_and_shared_ones_are_not() -> None:
    body = Body(
        (True, False),
        (Step("aten.add.Tensor", ("x", "p0")), Step("aten.mul.Tensor", ("%0", "p1"))),
    )
    bias, scale = torch.randn(4, 5), torch.randn(5)
    x, expert = torch.randn(3, 5), torch.tensor([2, 0, 2])
    got = body.run(x, torch.ones(3, 1), [bias, scale], expert, one_expert)
    assert_close(got, (x + bias[expert]) * scale)


def test_dtypes_survive_as_names() -> None:
    body = Body((), (Step("aten._to_copy.default", ("x",), (("dtype", "bfloat16"),)),))
    again = Body.from_json(body.to_json())
    assert again.run(torch.ones(1, 2), torch.ones(1, 1), [], torch.zeros(1), one_expert).dtype == (
        torch.bfloat16
    )


@given(
    ops=st.lists(st.sampled_from(sorted(ATEN_WHITELIST)), min_size=1, max_size=8),
    per_expert=st.lists(st.booleans(), max_size=3),
)
def test_json_round_trips_and_is_canonical(ops, per_expert) -> None:
    steps = tuple(Step(op, (f"%{i - 1}" if i else "x", 2)) for i, op in enumerate(ops))
    body = Body(tuple(per_expert), steps)
    assert Body.from_json(body.to_json()) == body
    assert Body.from_json(body.to_json()).to_json() == body.to_json()


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "at least one step"),
        ((Step("aten.sort.default", ("x",)),), "not an operation a body may contain"),
        ((Step("aten.silu.default", ("%0",)),), "undefined value '%0'"),
        ((Step("aten.mul.Tensor", ("x", "p2")),), "undefined value 'p2'"),
        ((Step(MATMUL, ("x",)),), "matmul takes"),
        ((Step(SLICE, ("x", 0)),), "slice takes"),
    ],
)
def test_a_malformed_body_is_refused_with_its_reason(steps, reason) -> None:
    with pytest.raises(BodyError, match=reason):
        Body((True,), steps)


def test_a_newer_version_is_refused() -> None:
    document = json.loads(SWIGLU.to_json()) | {"version": 99}
    with pytest.raises(BodyError, match="version 99"):
        Body.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version":1}', '{"version":1,"steps":[1]}'])
def test_what_is_not_a_body_is_refused(text) -> None:
    with pytest.raises(BodyError, match="not a body"):
        Body.from_json(text)


def test_the_summary_reads_like_a_formula() -> None:
    assert SWIGLU.summary() == "matmul(p0) slice silu slice mul matmul(p1) mul"
