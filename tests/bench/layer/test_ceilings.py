"""The ceilings are the fastest ways found, and count operations and bytes rightly."""

import re

import torch

from modes_fx.bench.layer.ceilings import bandwidth_ceiling, gemm_ceiling
from modes_fx.bench.shapes import find_shape


def test_the_gemm_is_one_of_the_layers_own():
    ceiling = gemm_ceiling(find_shape("tiny"), torch.float32, "cpu")
    rows, inputs, _, outputs = map(int, re.findall(r"\d+", ceiling.name))
    assert (inputs, outputs) in {(64, 64), (32, 64)}
    assert ceiling.amount == 2 * rows * inputs * outputs
    assert ceiling.run().shape == (rows, outputs)


def test_the_reader_goes_through_more_than_four_caches():
    ceiling = bandwidth_ceiling(cache=2**20, clock="cpu")
    assert 4 * 2**20 < ceiling.amount < 4.01 * 2**20
    ceiling.run()
