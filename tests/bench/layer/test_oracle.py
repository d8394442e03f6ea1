"""The oracle is the model's own code; an error in one token of many is seen."""

import pytest
import torch

from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer
from modes_fx.bench.shapes import find_shape


def test_it_is_the_module_itself_in_float32():
    layer = Layer.build(find_shape("tiny"), torch.float32, copies=1)
    call = make_cycle(layer.shape, 6, 0.0, torch.float32, copies=1).calls[0]
    own = layer.copies[0](call.x, call.index, call.weight)
    assert largest_error(own, expected(layer, call)) == 0


def test_it_computes_weights_in_bfloat16_without_rounding_in_between():
    layer = Layer.build(find_shape("tiny"), torch.bfloat16, copies=1)
    call = make_cycle(layer.shape, 6, 0.5, torch.bfloat16, copies=1).calls[0]
    truth = expected(layer, call)
    wide = layer.copies[0].float()
    assert truth.dtype == torch.float32
    assert torch.equal(truth, wide(call.x.float(), call.index, call.kept_weight.float()))


def test_the_module_keeps_its_weights():
    layer = Layer.build(find_shape("tiny"), torch.float32, copies=1)
    names = [name for name, _ in layer.copies[0].named_parameters()]
    expected(layer, make_cycle(layer.shape, 1, 0.0, torch.float32, copies=1).calls[0])
    assert [name for name, _ in layer.copies[0].named_parameters()] == names


def test_one_wrong_token_of_many_shows():
    right = torch.randn(1000, 64)
    wrong = right.clone()
    wrong[123] *= 1.1
    assert largest_error(right, right) == 0
    assert largest_error(wrong, right) == pytest.approx(0.1, rel=0.3)
    assert largest_error(wrong, right) > TOLERANCE[torch.bfloat16]


def test_a_token_with_no_experts_must_be_zero():
    right = torch.randn(10, 64)
    right[3] = 0
    wrong = right.clone()
    wrong[3] = 0.1
    assert largest_error(wrong, right) == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("broken", [torch.full((2, 3), torch.nan), torch.zeros(3, 3)])
def test_not_a_number_or_another_shape_is_infinitely_wrong(broken):
    assert largest_error(broken, torch.ones(2, 3)) == float("inf")
