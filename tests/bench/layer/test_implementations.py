"""transformers' ways are timed where they have something of their own to show."""

import pytest
import torch

from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.implementations import (
    DEFAULT_BASELINES,
    IMPLEMENTATIONS,
    find_implementations,
)
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")


@pytest.mark.parametrize("name", ["hf_eager", "hf_grouped", "hf_zeroed"])
def test_they_compute_what_the_model_does(name):
    layer = Layer.build(TINY, torch.bfloat16, copies=2)
    implementation = IMPLEMENTATIONS[name]
    run = implementation.prepare(layer, "default")
    skip = 0.0 if implementation.runs_at(0.0) else 0.5
    for call in make_cycle(TINY, 5, skip, torch.bfloat16, copies=2).calls:
        assert largest_error(run(call), expected(layer, call)) <= TOLERANCE[torch.bfloat16]


def test_what_cannot_skip_is_timed_once_and_zeroing_only_where_something_is_skipped():
    runs = {name: [one.runs_at(0.0), one.runs_at(0.5)] for name, one in IMPLEMENTATIONS.items()}
    assert runs["ours"] == [True, True]
    assert runs["hf_grouped"] == [True, False]
    assert runs["hf_zeroed"] == [False, True]


def test_batched_mm_is_left_out_where_it_would_copy_gigabytes():
    layer = Layer(find_shape("qwen3-vl-30b-a3b"), torch.bfloat16, copies=[])
    left_out = IMPLEMENTATIONS["hf_batched_compiled"].left_out
    assert left_out(layer, 16) is None
    assert left_out(layer, 512) == "it takes the weights of each of the 4096 pairs, 38.7 GB"


def test_other_libraries_are_timed_only_when_named():
    assert DEFAULT_BASELINES == ("hf_eager", "hf_grouped", "hf_batched_compiled", "hf_zeroed")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        ValueError, match="no implementation fastest; there are ours, ours_int8, hf_eager"
    ):
        find_implementations(["ours", "fastest"])
