"""ONNX Runtime's fused experts, ``com.microsoft.MoE``, on a layer.

The operator routes by itself: softmax, top-k, renormalise. It is given the logarithms of the
combine weights, of which it makes the same choice and weights again; its time includes that.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from modes_fx.bench.layer.calls import Call
from modes_fx.bench.layer.weights import (
    Layer,
    Layout,
    NotAvailableError,
    Runner,
    require_plain_experts,
)
from modes_fx.bench.shapes import LayerShape

NEVER = -1e4
"""The logit of an expert that was not chosen."""


def prepare(layer: Layer, layout: Layout) -> Runner:
    """Return what runs the operator in a session of its own.

    Raises:
        NotAvailableError: it is not installed, or has no kernel for such a layer.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise NotAvailableError(f"not installed: pip install {' '.join(missing)}")
    if layer.dtype != torch.float32:
        raise NotAvailableError("its CPU kernel computes in float32 only: use --dtype fp32")
    require_plain_experts(layer)
    session = _session(layer.shape)
    stacks = [
        (_interleaved(module.get_parameter("gate_up_proj")), module.get_parameter("down_proj"))
        for module in layer.copies
    ]

    def run(call: Call) -> Tensor:
        first, second = stacks[call.copy]
        logits = torch.full((len(call.x), layer.shape.experts), NEVER)
        feed = {
            "x": call.x,
            "logits": logits.scatter_(1, call.index, call.weight.log()),
            "fc1": first,
            "fc2": second,
        }
        (out,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
        return torch.from_numpy(out)

    return run


def _interleaved(gate_up: Tensor) -> Tensor:
    """Turn ``[E, 2I, H]`` with all gates first into gate, up, gate, up: a copy."""
    gate, up = gate_up.chunk(2, dim=1)
    return torch.stack((gate, up), dim=2).flatten(1, 2)


def _session(shape: LayerShape) -> Any:
    helper, runtime = import_module("onnx.helper"), import_module("onnxruntime")
    float32 = import_module("onnx").TensorProto.FLOAT
    hidden, width, experts = shape.hidden, shape.width, shape.experts
    sizes = {
        "x": ["T", hidden],
        "logits": ["T", experts],
        "fc1": [experts, 2 * width, hidden],
        "fc2": [experts, hidden, width],
        "out": ["T", hidden],
    }
    values = {
        name: helper.make_tensor_value_info(name, float32, size) for name, size in sizes.items()
    }
    node = helper.make_node(
        "MoE",
        ["x", "logits", "fc1", "", "fc2"],
        ["out"],
        domain="com.microsoft",
        k=shape.top_k,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        normalize_routing_weights=1,
    )
    out = values.pop("out")
    model = helper.make_model(
        helper.make_graph([node], "experts", list(values.values()), [out]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
