"""The layer whose experts are timed: as many copies of the model's own module as a cycle needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from modes_fx.bench.layer.calls import Call
from modes_fx.bench.shapes import LayerShape

Layout = Literal["default", "prepacked"]
"""Of our weights: as the model stores them, or as the kernels like them best."""

Runner = Callable[[Call], Tensor]
"""Computes the experts of a call: ``[T, H]`` in the dtype of its tokens."""


class NotAvailableError(ValueError):
    """An implementation cannot run here; says why, and what to do."""


@dataclass(frozen=True)
class Layer:
    """A layer's experts.

    Attributes:
        shape: its sizes.
        dtype: of weights and tokens.
        copies: alike but for their weights.
    """

    shape: LayerShape
    dtype: torch.dtype
    copies: Sequence[nn.Module]

    @staticmethod
    def build(shape: LayerShape, dtype: torch.dtype, copies: int) -> "Layer":
        """Build the copies, each with random weights of its own."""
        return Layer(shape, dtype, [shape.build(dtype, seed) for seed in range(copies)])

    @property
    def copy_bytes(self) -> int:
        """Bytes of one copy's weights."""
        return sum(value.nbytes for value in self.copies[0].parameters())
