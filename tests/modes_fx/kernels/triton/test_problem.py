"""How a call's weights are laid out for the kernels, and what they do not take."""

import pytest
import torch

from modes_fx.kernels.triton.limits import Device
from modes_fx.kernels.triton.plan import UnsupportedBodyError
from modes_fx.kernels.triton.problem import INTERLEAVED, prepare
from tests.modes_fx.kernels.triton.bodies import Sizes, problem

SIZES = Sizes(T=3, K=2, E=4, H=32, I=16)
CPU = torch.device("cpu")


def prepared(name: str, dtype=torch.float32, target: str = "sm_90"):
    given = problem(name, SIZES, dtype, CPU)
    device = Device(target, multiprocessors=1, shared_bytes=1 << 20)
    return prepare(*given[:4], given.body.to_json(), SIZES.E, device)


def test_halves_of_one_product_are_views_of_one_parameter() -> None:
    call = prepared("swiglu")
    first, second = call.ups
    matrix = call.params[0]
    assert call.streams == 2
    assert torch.equal(first.matrix, matrix[:, : SIZES.I].transpose(1, 2))
    assert torch.equal(second.matrix, matrix[:, SIZES.I :].transpose(1, 2))
    assert second.matrix.data_ptr() == matrix[:, SIZES.I].data_ptr()
    assert first.contiguous == "k"


def test_halves_that_take_turns_are_read_as_one() -> None:
    call = prepared("clamped_interleaved")
    assert call.streams == INTERLEAVED
    assert call.ups[0].matrix.shape == (SIZES.E, SIZES.H, 2 * SIZES.I)
    assert call.ups[0].contiguous == "n"
    assert call.printed.streams[0].start == 1  # up, the odd columns, comes first in this body


def test_two_products_have_a_layout_each() -> None:
    first, second = prepared("two_products_weighted_input").ups
    assert (first.contiguous, second.contiguous) == ("k", "n")


@pytest.mark.parametrize(
    ("precision", "target", "expected"),
    [
        ("highest", "sm_90", "ieee"),
        ("high", "sm_90", "tf32"),
        ("high", "gfx942", "tf32"),
        ("high", "gfx950", "ieee"),
    ],
)
def test_float32_is_rounded_only_if_the_user_of_torch_says_so(precision, target, expected) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        call = prepared("swiglu", target=target)
        assert call.dot(call.printed.plan.down)[1] == expected
        half = prepared("swiglu", torch.bfloat16, target)
        assert half.dot(half.printed.plan.down)[1] == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_other_dtypes_and_scattered_vectors_are_refused() -> None:
    given = problem("swiglu", SIZES, torch.float64, CPU)
    with pytest.raises(UnsupportedBodyError, match="do not compute with float64"):
        prepare(*given[:4], given.body.to_json(), SIZES.E)
    given = problem("clamped_interleaved", SIZES, torch.float32, CPU)
    params = [*given.params[:3], given.params[3].repeat(1, 2)[:, ::2]]
    with pytest.raises(UnsupportedBodyError, match="p3 is not contiguous"):
        prepare(*given[:3], params, given.body.to_json(), SIZES.E)


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_eight_bits_need_a_device_that_converts_them(target) -> None:
    given = problem("squared_relu", SIZES, torch.bfloat16, CPU)
    params = [param.to(torch.float8_e4m3fn) for param in given.params]
    old = Device(target, multiprocessors=1, shared_bytes=1 << 16)
    with pytest.raises(UnsupportedBodyError, match=f"{target} does not convert float8_e4m3fn"):
        prepare(*given[:3], params, given.body.to_json(), SIZES.E, old)


def test_rows_that_do_not_lie_together_are_copied() -> None:
    given = problem("swiglu", SIZES, torch.float32, CPU)
    scattered = given.x.T.contiguous().T
    call = prepare(scattered, *given[1:4], given.body.to_json(), SIZES.E)
    assert call.x.stride(1) == 1
    assert torch.equal(call.x, given.x)
