"""Codes that a model computes become int32; those that it is given stay int8."""

import onnx_ir as ir
import pytest
import torch

from modes_fx.export.onnx.codes import widen_codes

NARROW, WIDE = ir.DataType.INT8, ir.DataType.INT32


def value(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["t"]), type=ir.TensorType(dtype))


def graph(given: ir.Value, nodes: list[ir.Node]) -> ir.Graph:
    return ir.Graph([given], [nodes[-1].outputs[0]], nodes=nodes, opset_imports={"": 20})


@pytest.fixture
def ids() -> ir.Value:
    return value("ids", ir.DataType.INT64)


def test_casts_and_constants_on_the_way_are_widened(ids) -> None:
    cast = ir.node("Cast", [ids], {"to": ir.AttrInt64("to", NARROW)})
    cast.outputs[0].type = ir.TensorType(NARROW)
    one = ir.tensor(torch.ones(1, dtype=torch.int8).numpy(), name="one")
    constant = ir.node("Constant", [], {"value": ir.AttrTensor("value", one)})
    constant.outputs[0].type = ir.TensorType(NARROW)
    total = ir.node("Add", [cast.outputs[0], constant.outputs[0]])
    total.outputs[0].type = ir.TensorType(NARROW)
    graph(ids, [cast, constant, total])
    widen_codes(total.outputs[0])
    assert cast.attributes["to"].as_int() == WIDE
    assert constant.attributes["value"].as_tensor().dtype == WIDE
    assert [node.outputs[0].dtype for node in (cast, constant, total)] == [WIDE] * 3
    assert ids.dtype == ir.DataType.INT64


def test_codes_that_are_given_stay_as_they_are() -> None:
    given = value("modality", NARROW)
    same = ir.node("Identity", [given])
    same.outputs[0].type = ir.TensorType(NARROW)
    graph(given, [same])
    widen_codes(same.outputs[0])
    assert (given.dtype, same.outputs[0].dtype) == (NARROW, NARROW)
