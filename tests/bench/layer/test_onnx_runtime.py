"""ONNX Runtime computes the same where it is installed, and says what it cannot do."""

import pytest
import torch

from modes_fx.bench.layer import onnx_runtime
from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer, NotAvailableError
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")


def test_it_computes_what_the_model_does():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    layer = Layer.build(TINY, torch.float32, copies=2)
    run = onnx_runtime.prepare(layer, "default")
    for call in make_cycle(TINY, 5, 0.0, torch.float32, copies=2).calls:
        assert largest_error(run(call), expected(layer, call)) <= TOLERANCE[torch.float32]


def test_where_it_is_not_installed_it_says_how_to(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None)
    with pytest.raises(NotAvailableError, match="pip install onnx onnxruntime"):
        onnx_runtime.prepare(Layer.build(TINY, torch.float32, copies=1), "default")


def test_it_has_no_kernel_for_bfloat16(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: object())
    with pytest.raises(NotAvailableError, match="float32 only: use --dtype fp32"):
        onnx_runtime.prepare(Layer.build(TINY, torch.bfloat16, copies=1), "default")
