"""Runs one node of ours, lowered, in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor

from modes_fx.export.onnx.lower import Form, lower
from modes_fx.export.onnx.placeholders import DOMAIN, OPSET


def session_of(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def run(model: ir.Model, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return [torch.from_numpy(np.array(out)) for out in session_of(model).run(None, feeds)]


def model_of(
    op_type: str,
    inputs: Mapping[str, Tensor],
    constants: Sequence[Tensor],
    attributes: Mapping[str, Any],
    outputs: Sequence[Tensor],
    form: Form = "unrolled",
) -> ir.Model:
    """A model of one node of ours, lowered; the first dimension of inputs and outputs is dynamic.

    The node reads the inputs and then the constants; outputs are given by an example.
    """
    given = [_value(name, example) for name, example in inputs.items()]
    weights = []
    for position, tensor in enumerate(constants):
        value = ir.Value(
            name=f"c{position}",
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(from_torch_dtype(tensor.dtype)),
            const_value=TorchTensor(tensor),
        )
        weights.append(value)
    results = [_value(f"out{i}", example) for i, example in enumerate(outputs)]
    node = ir.Node(
        DOMAIN,
        op_type,
        [*given, *weights],
        ir.convenience.convert_attributes(attributes),
        outputs=results,
    )
    graph = ir.Graph(
        given,
        results,
        nodes=[node],
        initializers=weights,
        opset_imports={"": OPSET, DOMAIN: 1},
        name="test",
    )
    model = ir.Model(graph, ir_version=10)
    lower(model, form)
    return model


def _value(name: str, example: Tensor) -> ir.Value:
    shape = ir.Shape(["n", *example.shape[1:]])
    return ir.Value(name=name, shape=shape, type=ir.TensorType(from_torch_dtype(example.dtype)))
