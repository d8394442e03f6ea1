"""Operations and bytes are those counted by hand."""

import pytest
import torch

from modes_fx.bench.layer.work import work_of
from modes_fx.bench.shapes import find_shape

QWEN = find_shape("qwen3-vl-30b-a3b")


def test_one_token_of_a_large_layer():
    work = work_of(QWEN, tokens=1, kept=8, hit=8, dtype=torch.bfloat16)
    # Eight experts of three matrices of 2048 x 768: a multiplication and an addition each.
    assert work.flops == 8 * 3 * 2048 * 768 * 2 == 75_497_472
    # The same matrices in two bytes each; the token in and out.
    assert work.bytes == 8 * 3 * 2048 * 768 * 2 + 2 * 2048 * 2 == 75_505_664


def test_pairs_of_one_expert_read_its_weights_once():
    one = work_of(QWEN, tokens=16, kept=16, hit=1, dtype=torch.float32)
    assert one.flops == 16 * 2 * 4_718_592
    assert one.bytes == 4 * (4_718_592 + 2 * 16 * 2048)


def test_skipped_pairs_are_no_work():
    work = work_of(QWEN, tokens=4, kept=0, hit=0, dtype=torch.bfloat16)
    assert work.flops == 0
    assert work.bytes == 2 * 4 * 2048 * 2


@pytest.mark.parametrize(("tokens", "bound_by"), [(1, "reading"), (2048, "computing")])
def test_the_floor_is_the_larger_of_computing_and_reading(tokens, bound_by):
    work = work_of(QWEN, tokens, kept=8 * tokens, hit=min(8 * tokens, 128), dtype=torch.bfloat16)
    computing, reading = work.flops / 400e9, work.bytes / 40e9
    assert work.floor(400e9, 40e9) == {"reading": reading, "computing": computing}[bound_by]
