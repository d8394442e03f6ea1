"""The kernels for single tokens against the reference, on memory full of NaN."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx.kernels import reference
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.problem import prepare
from tests.modes_fx.kernels.triton.bodies import BODIES, Problem, Sizes, problem

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_right(given: Problem, experts: int) -> None:
    x, index, weight, params, body = given
    prepared = prepare(x, index, weight, params, body.to_json(), experts)
    got = launch.run_decode(prepared, launch.configurations_for(prepared))
    exact = reference.experts(*given.to_float32(), experts)
    assert not got.isnan().any()
    tolerance = TOLERANCE[x.dtype] * float(exact.abs().max().clamp_min(1))
    assert_close(got.float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("body", BODIES)
def test_every_body(body, dtype, device) -> None:
    sizes = Sizes(T=2, K=2, E=3, H=72, I=24)
    given = problem(body, sizes, dtype, device)
    given.index[1, 0] = sizes.E
    assert_right(given, sizes.E)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 1, 1, 16, 16),
        Sizes(1, 8, 8, 33, 7),
        Sizes(1, 4, 128, 520, 9),
        Sizes(3, 2, 3, 48, 20),
    ],
    ids=str,
)
def test_odd_sizes(sizes, device) -> None:
    assert_right(problem("swiglu", sizes, torch.float32, device), sizes.E)


def test_a_token_that_keeps_nothing_gets_zero(device) -> None:
    sizes = Sizes(2, 2, 3, 32, 16)
    given = problem("swiglu", sizes, torch.float32, device)
    given.index[0] = torch.tensor([sizes.E, sizes.E + 5])
    assert_right(given, sizes.E)
    got = launch.experts(
        given.x[:1], given.index[:1], given.weight[:1], given.params, given.body.to_json(), sizes.E
    )
    assert (got == 0).all()


@pytest.mark.grid
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("experts", [1, 3, 8, 128])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_the_whole_grid(body, dtype, experts, top_k, device) -> None:
    sizes = Sizes(T=1, K=min(top_k, experts), E=experts, H=72, I=20)
    given = problem(body, sizes, dtype, device)
    assert_right(given, experts)
    given.index[0, 0] = experts
    assert_right(given, experts)
