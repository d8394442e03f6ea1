"""OpenVINO computes the same where it is installed, and says what it cannot do."""

from dataclasses import replace

import pytest
import torch

from modes_fx.bench.layer import open_vino
from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer, NotAvailableError
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_computes_what_the_model_does(dtype):
    pytest.importorskip("openvino")
    layer = Layer.build(TINY, dtype, copies=2)
    run = open_vino.prepare(layer, "default")
    for call in make_cycle(TINY, 5, 0.0, dtype, copies=2).calls:
        assert largest_error(run(call), expected(layer, call)) <= TOLERANCE[dtype]


def test_where_it_is_not_installed_it_says_how_to(monkeypatch):
    monkeypatch.setattr(open_vino, "find_spec", lambda name: None)
    with pytest.raises(NotAvailableError, match="pip install openvino"):
        open_vino.prepare(Layer.build(TINY, torch.float32, copies=1), "default")


def test_experts_with_biases_are_left_out(monkeypatch):
    monkeypatch.setattr(open_vino, "find_spec", lambda name: object())
    shape = find_shape("gpt-oss-20b")
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_local_experts": 4}
    small = replace(shape, hidden=32, width=16, experts=4, fields=shape.fields | sizes)
    with pytest.raises(NotAvailableError, match="no bias"):
        open_vino.prepare(Layer.build(small, torch.float32, copies=1), "default")
