"""Configurations that fit a device, and what is said where none does."""

from dataclasses import replace

import pytest

from modes_fx.kernels.triton.config import GemmConfig
from modes_fx.kernels.triton.limits import (
    BARRIER_BYTES,
    INTERPRETER,
    SHARED_BYTES,
    Device,
    DeviceLimitError,
    fit,
    shared_need,
)

LARGE = GemmConfig(block_m=128, block_n=128, block_k=64, warps=8, stages=4)


def device(target: str) -> Device:
    return Device(target, multiprocessors=100, shared_bytes=SHARED_BYTES[target])


@pytest.mark.parametrize("target", SHARED_BYTES)
@pytest.mark.parametrize("products", [1, 2])
def test_a_configuration_is_made_smaller_until_it_fits(target, products) -> None:
    fitting = fit(LARGE, products, 2, 2, device(target))
    assert shared_need(fitting, products, 2, 2, target) <= SHARED_BYTES[target]


def test_stages_are_given_up_first_and_what_fits_is_left_alone() -> None:
    assert fit(LARGE, 1, 2, 2, INTERPRETER) == LARGE
    smaller = fit(LARGE, 2, 2, 2, device("sm_80"))
    assert smaller == LARGE.model_copy(update={"stages": smaller.stages})


def test_where_nothing_fits_the_numbers_are_given() -> None:
    tiny = replace(INTERPRETER, target="sm_80", shared_bytes=1000)
    with pytest.raises(DeviceLimitError, match=r"16 x 32 x 32\) needs \d+ bytes .* has 1000"):
        fit(LARGE, 2, 2, 2, tiny)


@pytest.mark.parametrize(
    ("target", "block_m", "expected"), [("sm_90", 64, 3), ("sm_90", 16, 2), ("sm_80", 64, 2)]
)
def test_a_copy_less_is_needed_where_tensor_cores_read_registers(target, block_m, expected) -> None:
    gemm = GemmConfig(block_m=block_m, block_n=128, block_k=128, warps=4, stages=3)
    one_stage = (block_m + 128) * 128 * 2
    assert shared_need(gemm, 1, 2, 2, target) == expected * one_stage + BARRIER_BYTES
