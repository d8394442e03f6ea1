"""OpenVINO on a layer, in the form of experts that it fuses into one operation for each product.

All experts are written as computing all tokens; OpenVINO finds which of the results are read, and
computes those.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from modes_fx.bench.layer.calls import Call
from modes_fx.bench.layer.weights import (
    Layer,
    Layout,
    NotAvailableError,
    Runner,
    require_plain_experts,
)

PRECISION = {torch.bfloat16: "bf16", torch.float32: "f32"}


def prepare(layer: Layer, layout: Layout) -> Runner:
    """Return what runs the compiled experts; OpenVINO holds the weights once more.

    Raises:
        NotAvailableError: it is not installed, or the experts are not of the form it fuses.
    """
    if find_spec("openvino") is None:
        raise NotAvailableError("not installed: pip install openvino")
    require_plain_experts(layer)
    openvino = import_module("openvino")
    compiled = [_compile(openvino, module, layer) for module in layer.copies]

    def tensor(value: Tensor) -> Any:
        if value.dtype != torch.bfloat16:
            return value.numpy()
        return openvino.Tensor(value.view(torch.int16).numpy(), value.shape, openvino.Type.bf16)

    def run(call: Call) -> Tensor:
        inputs = [tensor(call.x), tensor(call.index), tensor(call.weight)]
        out = compiled[call.copy](inputs)[0]
        return torch.from_numpy(out).to(call.x.dtype)

    return run


class _AllExperts(nn.Module):
    """Every expert on every token; those that were not chosen count with a weight of zero."""

    def __init__(self, experts: Any, width: int) -> None:
        super().__init__()
        self._experts, self._width = experts, width

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        own, width = self._experts, self._width
        rows = x.repeat(own.num_experts, 1).view(own.num_experts, -1, x.shape[1])
        gate = torch.bmm(rows, own.gate_up_proj[:, :width].transpose(1, 2))
        up = torch.bmm(rows, own.gate_up_proj[:, width:].transpose(1, 2))
        out = torch.bmm(own.act_fn(gate) * up, own.down_proj.transpose(1, 2))
        weights = torch.zeros(x.shape[0], own.num_experts, dtype=x.dtype)
        weights = weights.scatter(1, index, weight).t()[:, :, None]
        return (out.view(own.num_experts, -1, x.shape[1]) * weights).sum(0).float()


def _compile(openvino: Any, module: nn.Module, layer: Layer) -> Any:
    shape = layer.shape
    example = (
        torch.zeros(2, shape.hidden, dtype=layer.dtype),
        torch.arange(2 * shape.top_k).view(2, shape.top_k) % shape.experts,
        torch.ones(2, shape.top_k, dtype=layer.dtype),
    )
    model = openvino.convert_model(_AllExperts(module, shape.width), example_input=example)
    options = {
        "INFERENCE_PRECISION_HINT": PRECISION[layer.dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(model, "CPU", options)
