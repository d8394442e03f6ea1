"""Every operation that a body may contain, in ONNX Runtime, against ATen."""

import onnx_ir as ir
import pytest
import torch
from torch.testing import assert_close

from modes_fx.export.onnx.nodes import Constants, Nodes
from modes_fx.export.onnx.operations import OPERATIONS, write_operation
from modes_fx.export.onnx.placeholders import OPSET
from modes_fx.kernels.epilogue import ATEN_WHITELIST
from tests.export.onnx.runtime import run

X, Y = "x", "y"
CALLS = {
    "aten._prelu_kernel.default": [((X, Y), {})],
    "aten._to_copy.default": [((X,), {"dtype": "float16"}), ((X,), {})],
    "aten.add.Scalar": [((X, 2), {}), ((X, 1.5, 2), {})],
    "aten.add.Tensor": [((X, Y), {}), ((X, Y), {"alpha": 0.5}), ((X, 1), {})],
    "aten.celu.default": [((X,), {}), ((X, 0.7), {})],
    "aten.clamp.default": [((X, -0.5, 0.5), {}), ((X, None, 0.5), {}), ((X, -1), {})],
    "aten.clamp_max.default": [((X, 0.5), {})],
    "aten.clamp_min.default": [((X, 0.5), {})],
    "aten.div.Scalar": [((X, 3), {})],
    "aten.div.Tensor": [((X, Y), {})],
    "aten.elu.default": [((X,), {}), ((X, 1.5, 2.0, 0.5), {})],
    "aten.gelu.default": [((X,), {}), ((X,), {"approximate": "tanh"})],
    "aten.gt.Scalar": [((X, 0.5), {})],
    "aten.hardtanh.default": [((X,), {}), ((X, -0.2, 0.3), {})],
    "aten.leaky_relu.default": [((X,), {}), ((X, 0.2), {})],
    "aten.log1p.default": [((Y,), {})],
    "aten.maximum.default": [((X, Y), {})],
    "aten.mean.dim": [((X, [-1]), {}), ((X, [-1], True), {})],
    "aten.minimum.default": [((X, Y), {})],
    "aten.mul.Scalar": [((X, 3), {})],
    "aten.mul.Tensor": [((X, Y), {}), ((X, 1.702), {})],
    "aten.pow.Tensor_Scalar": [((X, 2), {}), ((X, 3), {}), ((Y, 0.5), {})],
    "aten.rsqrt.default": [((Y,), {})],
    "aten.rsub.Scalar": [((X, 2), {}), ((X, 2, 3), {})],
    "aten.softplus.default": [((X,), {}), ((X, 2.0, 3.0), {})],
    "aten.sqrt.default": [((Y,), {})],
    "aten.sub.Scalar": [((X, 2), {})],
    "aten.sub.Tensor": [((X, Y), {}), ((X, Y), {"alpha": 2})],
    "aten.sum.dim_IntList": [((X, [-1], True), {}), ((X, [-1]), {"dtype": "float32"})],
    "aten.threshold.default": [((X, 0.2, 7.0), {})],
}
PLAIN = [((X,), {})]
CASES = [
    pytest.param(op, args, kwargs, id=f"{op.removeprefix('aten.')}-{i}")
    for op in sorted(ATEN_WHITELIST - {"aten.where.self"})
    for i, (args, kwargs) in enumerate(CALLS.get(op, PLAIN))
]


def test_every_operation_of_a_body_has_a_form() -> None:
    assert OPERATIONS.keys() == ATEN_WHITELIST


@pytest.mark.parametrize(("op", "args", "kwargs"), CASES)
def test_it_computes_what_aten_computes(op, args, kwargs) -> None:
    x = torch.cat([torch.linspace(-30, 30, 61), torch.tensor([torch.nan, 100.0, -100.0])])[None]
    y = torch.linspace(0.1, 3, x.numel())[None]
    tensors = {X: x, Y: y}
    computed = computed_by_onnx(op, args, kwargs, tensors)
    overload = torch.ops.aten
    for part in op.split(".")[1:]:
        overload = getattr(overload, part)
    given = [tensors.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
    typed = {k: getattr(torch, v) if k == "dtype" else v for k, v in kwargs.items()}
    expected = overload(*given, **typed)
    assert computed.dtype == expected.dtype
    assert_close(computed, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_where_takes_its_condition_from_another_operation() -> None:
    n, inputs = Nodes(Constants()), values({X: torch.zeros(1, 2)})
    condition = write_operation(n, "aten.gt.Scalar", [inputs[X], 0], {})
    result = write_operation(n, "aten.where.self", [condition, inputs[X], 5.0], {})
    x = torch.tensor([[-1.0, 2.0]])
    assert run(model_of(n, inputs, result), {X: x})[0].tolist() == [[5.0, 2.0]]


def test_dtypes_meet_as_in_pytorch() -> None:
    half, single = torch.rand(2, 3).half(), torch.rand(2, 3)
    out = computed_by_onnx("aten.mul.Tensor", (X, Y), {}, {X: half, Y: single})
    assert_close(out, half * single)


def computed_by_onnx(op, args, kwargs, tensors):
    n, inputs = Nodes(Constants()), values(tensors)
    given = [inputs[arg] if isinstance(arg, str) else arg for arg in args]
    result = write_operation(n, op, given, kwargs)
    return run(model_of(n, inputs, result), tensors)[0]


def values(tensors):
    return {
        name: ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(ir.tensor_adapters.from_torch_dtype(tensor.dtype)),
        )
        for name, tensor in tensors.items()
    }


def model_of(n, inputs, result):
    n.op("Identity", result)
    out = n.written[-1].outputs[0]
    graph = ir.Graph(
        list(inputs.values()),
        [out],
        nodes=n.written,
        initializers=list(n.constants.values.values()),
        opset_imports={"": OPSET},
        name="test",
    )
    return ir.Model(graph, ir_version=10)
