"""Writes standard ONNX operators, and knows the dtype of every value on the way."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype, to_torch_dtype

Number = bool | int | float


class Constants:
    """The constants of one model, each once: nodes of branches and loops read them too.

    Attributes:
        values: the initializers, by content or by name.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.values: dict[Any, ir.Value] = {}
        self._names = itertools.count()

    def name(self) -> str:
        """Return a name that no other value of the model has, in whatever branch it is."""
        return f"modes_fx.{next(self._names)}"

    def array(self, content: Any, dtype: ir.DataType) -> ir.Value:
        """Return a small constant: a number, or a nested list of them."""
        array = np.asarray(content, dtype=dtype.numpy())
        key = (dtype, array.shape, array.tobytes())
        if key not in self.values:
            self._add(key, f"modes_fx.constant.{len(self.values)}", ir.tensor(array))
        return self.values[key]

    def tensor(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return a constant by its name; the first one given under it is kept."""
        if name not in self.values:
            self._add(name, name, tensor)
        return self.values[name]

    def _add(self, key: Any, name: str, tensor: ir.TensorProtocol) -> None:
        self.values[key] = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )


class Nodes:
    """A sequence of operators of one graph, which may be the body of a branch or a loop.

    Attributes:
        constants: what all graphs of the model share.
    """

    def __init__(self, constants: Constants) -> None:
        """Begin an empty sequence."""
        self.constants = constants
        self._tape = Tape()

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | Number | Sequence[int] | None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append an operator with one result and return it.

        Args:
            op_type: a standard operator.
            inputs: values; numbers become constants of the first value's dtype, and lists of
                integers int64 constants.
            dtype: of the result; that of the first input where it is left out.
            attributes: of the operator.
        """
        return self.op_with(op_type, inputs, 1, attributes, dtype)[0]

    def op_with(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | Number | Sequence[int] | None],
        outputs: int,
        attributes: Mapping[str, Any],
        dtype: ir.DataType | None = None,
    ) -> Sequence[ir.Value]:
        """Append an operator with several results of one dtype; see :meth:`op`."""
        typed = next((value for value in inputs if isinstance(value, ir.Value)), None)
        given = [self._input(value, typed) for value in inputs]
        kind = dtype or (typed.dtype if typed is not None else None)
        assert kind is not None, f"{op_type}: say which dtype it gives"
        results = self._tape.op_multi_out(op_type, given, attributes, num_outputs=outputs)
        for result in results:
            result.name = self.constants.name()
            result.dtype = kind
        return results

    def constant(self, content: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Return a small constant."""
        return self.constants.array(content, dtype)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in another dtype, itself where it has it already."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", value, dtype=dtype, to=int(dtype))

    def where(self, condition: ir.Value, yes: Any, no: Any) -> ir.Value:
        """Return one value or the other; at least one of them is no number."""
        typed = yes if isinstance(yes, ir.Value) else no
        given = [self._input(value, typed) for value in (yes, no)]
        return self.op("Where", condition, *given, dtype=typed.dtype)

    def graph(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """Return the operators so far as the body of a branch or a loop."""
        return ir.Graph(inputs, outputs, nodes=self._tape.nodes, name=name)

    @property
    def written(self) -> Sequence[ir.Node]:
        """The operators so far."""
        return self._tape.nodes

    def _input(self, value: Any, typed: ir.Value | None) -> ir.Value | None:
        if value is None or isinstance(value, ir.Value):
            return value
        if isinstance(value, Sequence):
            return self.constant(list(value))
        assert typed is not None
        assert typed.dtype is not None
        return self.constant(value, typed.dtype)


def promote(*values: ir.Value) -> ir.DataType:
    """Return the dtype in which PyTorch would compute with some tensors."""
    dtypes = [to_torch_dtype(value.dtype) for value in values if value.dtype is not None]
    result = dtypes[0]
    for other in dtypes[1:]:
        result = torch.promote_types(result, other)
    return from_torch_dtype(result)


def torch_tensor(value: ir.Value) -> torch.Tensor | None:
    """Return what a constant holds, without a copy where it came from PyTorch; None for others."""
    tensor = value.const_value
    if tensor is None:
        return None
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw.detach()
    return torch.from_numpy(np.array(tensor.numpy()))


def lazy(function: Any, dtype: ir.DataType, shape: Sequence[int]) -> ir.LazyTensor:
    """Return a constant that is computed when it is written, by a function that gives a tensor."""
    return ir.LazyTensor(
        lambda: TorchTensor(function().contiguous()), dtype=dtype, shape=ir.Shape(shape)
    )
