"""Modality codes as int32 where a model computes them: TensorRT takes int8 for quantised values."""

import onnx_ir as ir

NARROW, WIDE = ir.DataType.INT8, ir.DataType.INT32


def widen_codes(codes: ir.Value) -> None:
    """Compute codes as int32 instead of int8, from where they come on.

    Args:
        codes: what a gate reads; changed in place, with the nodes that compute it. Codes that a
            model is given stay as they are.
    """
    computed = _computed(codes)
    if any(value.is_graph_input() for value in computed):
        return
    for value in computed:
        value.type = ir.TensorType(WIDE)
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
        node = value.producer()
        if node is None:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", WIDE)
        elif "value" in node.attributes:
            constant = _widened(node.attributes["value"].as_tensor())
            node.attributes["value"] = ir.AttrTensor("value", constant)


def _computed(codes: ir.Value) -> list[ir.Value]:
    """Return the int8 values that codes are computed from, and they themselves."""
    found: list[ir.Value] = []
    open_ends = [codes]
    while open_ends:
        value = open_ends.pop()
        if value.dtype != NARROW or value in found:
            continue
        found.append(value)
        node = value.producer()
        if node is not None:
            open_ends += [given for given in node.inputs if given is not None]
    return found


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(WIDE.numpy()), name=tensor.name)
