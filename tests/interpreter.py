"""bfloat16 in Triton's interpreter, which computes on its bits as if they were integers.

The interpreter keeps bfloat16 as numpy uint16. Here values are widened to float32, computed, and
rounded to nearest even, as GPUs do. Only operations that the kernels use are covered.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to bfloat16."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    rounded = torch.from_numpy(values).bfloat16().view(torch.int16)
    return rounded.numpy().view(np.uint16).reshape(values.shape)


def is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def values_of(handle: Any) -> np.ndarray:
    return widen(handle.data) if is_bfloat16(handle) else handle.data


def elementwise(original: Callable[..., Any], operands: int) -> Callable[..., Any]:
    """An operation of the interpreter that takes ``operands`` handles and then a numpy function."""

    def patched(self: Any, *args: Any) -> Any:
        handles, op = args[:operands], args[operands]
        if not any(map(is_bfloat16, handles)) or op is np.where:  # a selection only moves bits
            return original(self, *args)
        result = op(*map(values_of, handles))
        is_bool = result.dtype == np.bool_
        return Handle(result if is_bool else narrow(result), tl.int1 if is_bool else tl.bfloat16)

    return patched


def dot(original: Callable[..., Any]) -> Callable[..., Any]:
    """``tl.dot`` of bfloat16 factors, summed in float32."""

    def patched(self: Any, a: Any, b: Any, acc: Any, *precision: Any) -> Any:
        if not (is_bfloat16(a) or is_bfloat16(b)):
            return original(self, a, b, acc, *precision)
        return Handle(values_of(a) @ values_of(b) + values_of(acc), acc.dtype.scalar)

    return patched


def cast(original: Callable[..., Any]) -> Callable[..., Any]:
    """A conversion from or to bfloat16."""

    def patched(self: Any, source: Any, target: Any, *rounding: Any) -> Any:
        scalar = target.scalar
        if is_bfloat16(source) == (scalar == tl.bfloat16):
            return original(self, source, target, *rounding)
        if is_bfloat16(source):
            numpy_dtype = interpreter._get_np_dtype(scalar)
            return Handle(widen(source.data).astype(numpy_dtype), scalar)
        if source.dtype.scalar.is_fp8():
            source = original(self, source, tl.float32, *rounding)
        return Handle(narrow(source.data.astype(np.float32)), tl.bfloat16)

    return patched


def make_bfloat16_right() -> None:
    """Patch the interpreter; once is enough."""
    if getattr(Builder, "computes_bfloat16", False):
        return
    Builder.binary_op = elementwise(Builder.binary_op, 2)
    Builder.unary_op = elementwise(Builder.unary_op, 1)
    Builder.ternary_op = elementwise(Builder.ternary_op, 3)
    Builder.create_dot = dot(Builder.create_dot)
    Builder.cast_impl = cast(Builder.cast_impl)
    Builder.create_fp_to_fp = cast(Builder.create_fp_to_fp)
    Builder.computes_bfloat16 = True
