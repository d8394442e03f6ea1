"""The GEMMs over sorted pairs against the reference, on memory full of NaN."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from modes_fx.kernels import reference
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.compaction import compact
from modes_fx.kernels.triton.limits import INTERPRETER
from modes_fx.kernels.triton.problem import prepare
from tests.modes_fx.kernels.triton.bodies import BODIES, Problem, Sizes, problem

SMALL = Sizes(T=21, K=2, E=3, H=40, I=24)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def skipping(given: Problem, ratio: float, experts: int) -> Problem:
    """The problem with a share of its pairs skipped."""
    drawn = torch.rand(given.index.shape, generator=torch.Generator().manual_seed(2))
    return given._replace(
        index=given.index.masked_fill(drawn.to(given.index.device) < ratio, experts)
    )


def assert_right(given: Problem, experts: int, programs: int = 3, atomic: bool = False) -> None:
    x, index, weight, params, body = given
    device = replace(INTERPRETER, multiprocessors=programs) if x.device.type == "cpu" else None
    prepared = prepare(x, index, weight, params, body.to_json(), experts, device)
    rule = launch.fitted(prepared, launch.configurations_for(prepared).for_rows(8, x.dtype))
    slots = compact(prepared.index, experts, rule.up.block_m)
    got = launch.run_prefill(prepared, rule, slots, atomic=atomic)
    exact = reference.experts(*given.to_float32(), experts)
    assert not got.isnan().any()
    assert got.dtype == x.dtype
    tolerance = TOLERANCE[x.dtype] * float(exact.abs().max().clamp_min(1))
    assert_close(got.float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("body", BODIES)
def test_every_body(body, dtype, device) -> None:
    assert_right(skipping(problem(body, SMALL, dtype, device), 0.4, SMALL.E), SMALL.E)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(T=2, K=1, E=1, H=16, I=16),
        Sizes(T=17, K=1, E=8, H=33, I=7),
        Sizes(T=40, K=8, E=8, H=64, I=48),
        Sizes(T=9, K=8, E=128, H=32, I=16),
    ],
    ids=str,
)
@pytest.mark.parametrize("ratio", [0.0, 0.7, 1.0])
def test_odd_sizes_and_any_share_of_skipped_pairs(sizes, ratio, device) -> None:
    given = skipping(problem("swiglu", sizes, torch.float32, device), ratio, sizes.E)
    assert_right(given, sizes.E)


@pytest.mark.parametrize("programs", [1, 8])
def test_any_number_of_programs_shares_the_tiles(programs, device) -> None:
    given = skipping(problem("swiglu", SMALL._replace(T=40), torch.float32, device), 0.3, SMALL.E)
    assert_right(given, SMALL.E, programs=programs)


def test_all_tokens_may_choose_one_expert(device) -> None:
    given = problem("swiglu", SMALL._replace(K=1), torch.float32, device)
    assert_right(given._replace(index=torch.full_like(given.index, 1)), SMALL.E)


def test_rows_may_be_added_as_they_are_done(device) -> None:
    given = skipping(problem("clamped_interleaved", SMALL, torch.float32, device), 0.3, SMALL.E)
    assert_right(given, SMALL.E, atomic=True)


def test_weights_of_skipped_pairs_may_be_nan_and_those_of_kept_ones_stay_visible(device) -> None:
    given = problem("swiglu", SMALL, torch.float32, device)
    given.index[0, 0], given.weight[0, 0] = SMALL.E, torch.nan
    assert_right(given, SMALL.E)
    given.weight[1, 0] = torch.nan
    got = launch.experts(*given[:4], given.body.to_json(), SMALL.E)
    assert got[1].isnan().all()
    assert not got[2:].isnan().any()


def test_a_part_of_larger_rows_is_read_in_place(device) -> None:
    given = problem("swiglu", SMALL, torch.float32, device)
    wide = torch.full((SMALL.T, SMALL.H + 7), torch.nan, device=device)
    wide[:, : SMALL.H] = given.x
    assert_right(given._replace(x=wide[:, : SMALL.H]), SMALL.E)


def test_weights_of_eight_bits_with_a_scale_for_each_expert(device) -> None:
    """The matrices are widened as they are loaded; the scale is a parameter like any other."""
    from modes_fx.kernels.epilogue import MATMUL, Body, Step

    sizes = SMALL
    given = problem("squared_relu", sizes, torch.bfloat16, device)
    scales = [torch.rand(sizes.E, 1, device=device).bfloat16() + 0.5 for _ in range(2)]
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.mul.Tensor", ("%0", "p1")),
        Step("aten.relu.default", ("%1",)),
        Step(MATMUL, ("%2", "p2", True)),
        Step("aten.mul.Tensor", ("%3", "p3")),
        Step("aten.mul.Tensor", ("%4", "w")),
    )
    up, down = (param.to(torch.float8_e4m3fn) for param in given.params)
    body = Body((True,) * 4, steps)
    assert_right(given._replace(params=[up, scales[0], down, scales[1]], body=body), sizes.E)


@pytest.mark.grid
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("experts", [1, 3, 8, 128])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_the_whole_grid(body, dtype, experts, top_k, device) -> None:
    sizes = Sizes(T=37, K=min(top_k, experts), E=experts, H=72, I=40)
    given = problem(body, sizes, dtype, device)
    for ratio, programs in ((0.0, 1), (0.5, 3), (0.9, 8), (1.0, 3)):
        assert_right(skipping(given, ratio, experts), experts, programs)
