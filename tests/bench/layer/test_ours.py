"""The body is lifted from the model's own module, and every copy runs with its own weights."""

from dataclasses import replace

import pytest
import torch

from modes_fx.bench.layer import ours
from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")
INTERLEAVED = replace(
    find_shape("gpt-oss-20b"),
    hidden=32,
    width=16,
    experts=6,
    top_k=2,
    fields={
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
)


@pytest.fixture(autouse=True)
def nothing_captured():
    torch.compiler.reset()


@pytest.mark.parametrize("shape", [TINY, INTERLEAVED], ids=["concatenated", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("skip", [0.0, 0.5])
def test_it_computes_what_the_model_does(shape, dtype, skip):
    layer = Layer.build(shape, dtype, copies=2)
    run = ours.prepare(layer, "default")
    for call in make_cycle(shape, 5, skip, dtype, copies=2).calls:
        assert largest_error(run(call), expected(layer, call)) <= TOLERANCE[dtype]


def test_the_body_names_the_parameters_of_the_module():
    lifted = ours.lift(Layer.build(TINY, torch.float32, copies=1))
    assert lifted.names == ("gate_up_proj", "down_proj")
    assert '"op":"aten.silu.default"' in lifted.body


def test_prepacked_weights_are_a_copy_and_give_the_same():
    layer = Layer.build(TINY, torch.float32, copies=1)
    call = make_cycle(TINY, 3, 0.0, torch.float32, copies=1).calls[0]
    right = expected(layer, call)
    run = ours.prepare(layer, "prepacked")
    for weights in layer.copies[0].parameters():
        weights.zero_()
    assert largest_error(run(call), right) <= TOLERANCE[torch.float32]
