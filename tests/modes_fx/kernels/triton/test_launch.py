"""What is launched for a call, and that nothing on the host decides by what is on the device."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx.kernels import reference
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.calls import recorded
from modes_fx.kernels.triton.config import expect_skip_ratio
from modes_fx.kernels.triton.limits import Device, DeviceLimitError
from tests.modes_fx.kernels.triton.bodies import Problem, Sizes, problem

SIZES = Sizes(T=12, K=2, E=4, H=32, I=16)


def run(given: Problem, device: Device | None = None) -> torch.Tensor:
    return launch.experts(*given[:4], given.body.to_json(), SIZES.E, device)


def names(calls) -> list[str]:
    return [call.name for call in calls]


def test_one_token_is_not_sorted_and_several_are(device) -> None:
    given = problem("swiglu", SIZES, torch.float32, device)
    with recorded() as many:
        run(given)
    one = given._replace(x=given.x[:1], index=given.index[:1], weight=given.weight[:1])
    with recorded() as single:
        run(one)
    assert names(many) == ["sort_pairs", "up_gemm", "down_gemm", "sum_pairs"]
    assert names(single) == ["decode_up", "decode_down"]


def test_no_tokens_launch_nothing(device) -> None:
    given = problem("swiglu", SIZES, torch.float32, device)
    with recorded() as calls:
        out = run(given._replace(x=given.x[:0], index=given.index[:0], weight=given.weight[:0]))
    assert (out.shape, calls) == ((0, SIZES.H), [])


def test_launches_are_the_same_whatever_is_skipped(device) -> None:
    """Their shapes come from the host alone, so a CUDA graph of them fits every routing."""
    given = problem("swiglu", SIZES, torch.float32, device)
    shapes = []
    for index in (given.index, torch.full_like(given.index, SIZES.E)):
        with recorded() as calls:
            run(given._replace(index=index))
        shapes.append([(call.name, call.grid, call.options) for call in calls])
    assert shapes[0] == shapes[1]


def test_the_same_call_gives_the_same_bits(device) -> None:
    given = problem("clamped_interleaved", SIZES, torch.bfloat16, device)
    assert torch.equal(run(given), run(given))


def test_tiles_are_lower_where_the_policy_leaves_fewer_rows() -> None:
    def height(skip: float) -> int:
        target = Device("sm_90", multiprocessors=132, shared_bytes=232448)
        meta = torch.device("meta")
        given = Problem(
            torch.empty(4096, 64, dtype=torch.bfloat16, device=meta),
            torch.empty(4096, 8, dtype=torch.int64, device=meta),
            torch.empty(4096, 8, dtype=torch.bfloat16, device=meta),
            [
                torch.empty(128, 64, 64, dtype=torch.bfloat16, device=meta),
                torch.empty(128, 64, 32, dtype=torch.bfloat16, device=meta),
            ],
            problem("swiglu", Sizes(1, 1, 1, 64, 32), torch.float32, torch.device("cpu")).body,
        )
        expect_skip_ratio(skip)
        try:
            with recorded(run=False) as calls:
                launch.experts(*given[:4], given.body.to_json(), 128, target)
        finally:
            expect_skip_ratio(0.0)
        return calls[-2].options["BM"]

    assert (height(0.0), height(0.7), height(0.88)) == (128, 64, 32)


def test_a_device_that_holds_nothing_is_refused(device) -> None:
    given = problem("swiglu", SIZES, torch.float32, device)
    with pytest.raises(DeviceLimitError, match=r"needs .* bytes of shared memory"):
        run(given, Device("sm_80", multiprocessors=1, shared_bytes=100))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_layer_follows_the_routing_of_each_replay(device) -> None:
    given = problem("swiglu", SIZES, torch.float32, device)
    run(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(given)
    for skip in (0, 1, 2):
        given.index[:, :skip] = SIZES.E
        graph.replay()
        assert_close(out, reference.experts(*given, SIZES.E), rtol=1e-4, atol=1e-4)
