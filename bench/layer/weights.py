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


def require_plain_experts(layer: Layer) -> None:
    """Check that other libraries' fused experts can compute what these do.

    Raises:
        NotAvailableError: they are not two stacks ``[E, 2I, H]``, gates first, and ``[E, H, I]``.
    """
    shape = layer.shape
    sizes = {name: tuple(value.shape) for name, value in layer.copies[0].named_parameters()}
    plain = {
        "gate_up_proj": (shape.experts, 2 * shape.width, shape.hidden),
        "down_proj": (shape.experts, shape.hidden, shape.width),
    }
    if sizes != plain:
        raise NotAvailableError(
            "only experts with a gate and an up matrix one after the other, no bias and the plain "
            f"layout are written for it, and these have {', '.join(sizes)}"
        )
