"""The MoE layers that kernels are compiled, counted and timed for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Layer:
    """One MoE layer's shape.

    Attributes:
        name: of a model that has it.
        experts: E.
        top_k: K.
        hidden: H.
        intermediate: I.
        form: which of ``FORMS`` its experts have.
    """

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    form: str

    @property
    def body(self) -> Body:
        """What an expert computes."""
        return FORMS[self.form](self)[0]

    @property
    def streams(self) -> int:
        """How many columns of up-products one column of the middle is made of."""
        return 1 if self.form == "squared_relu" else 2

    def params(self, dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
        """Allocate the parameters: matrices in ``dtype``, biases never below two bytes."""
        small = dtype if dtype.itemsize > 1 else torch.bfloat16
        return [
            torch.empty(shape, dtype=dtype if len(shape) == 3 else small, device=device)
            for shape in FORMS[self.form](self)[1]
        ]


def _gated(layer: Layer) -> tuple[Body, Shapes]:
    E, H, width = layer.experts, layer.hidden, layer.intermediate
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step(SLICE, ("%0", 0, width, 1)),
        Step("aten.silu.default", ("%1",)),
        Step(SLICE, ("%0", width, 2 * width, 1)),
        Step("aten.mul.Tensor", ("%2", "%3")),
        Step(MATMUL, ("%4", "p1", True)),
        Step("aten.mul.Tensor", ("%5", "w")),
    )
    return Body((True, True), steps), [(E, 2 * width, H), (E, H, width)]


def _clamped_interleaved(layer: Layer) -> tuple[Body, Shapes]:
    E, H, width = layer.experts, layer.hidden, layer.intermediate
    steps = (
        Step(MATMUL, ("x", "p0", False)),
        Step("aten.add.Tensor", ("%0", "p1")),
        Step(SLICE, ("%1", 1, 2 * width, 2)),
        Step("aten.clamp.default", ("%2", -7.0, 7.0)),
        Step("aten.add.Tensor", ("%3", 1)),
        Step(SLICE, ("%1", 0, 2 * width, 2)),
        Step("aten.clamp.default", ("%5", None, 7.0)),
        Step("aten.mul.Tensor", ("%6", 1.702)),
        Step("aten.sigmoid.default", ("%7",)),
        Step("aten.mul.Tensor", ("%6", "%8")),
        Step("aten.mul.Tensor", ("%4", "%9")),
        Step(MATMUL, ("%10", "p2", False)),
        Step("aten.add.Tensor", ("%11", "p3")),
        Step("aten.mul.Tensor", ("%12", "w")),
    )
    shapes: Shapes = [(E, H, 2 * width), (E, 2 * width), (E, width, H), (E, H)]
    return Body((True,) * 4, steps), shapes


def _squared_relu(layer: Layer) -> tuple[Body, Shapes]:
    E, H, width = layer.experts, layer.hidden, layer.intermediate
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.relu.default", ("%0",)),
        Step("aten.pow.Tensor_Scalar", ("%1", 2)),
        Step(MATMUL, ("%2", "p1", True)),
        Step("aten.mul.Tensor", ("%3", "w")),
    )
    return Body((True, True), steps), [(E, width, H), (E, H, width)]


def _weighted_input(layer: Layer) -> tuple[Body, Shapes]:
    E, H, width = layer.experts, layer.hidden, layer.intermediate
    steps = (
        Step("aten.mul.Tensor", ("x", "w")),
        Step(MATMUL, ("%0", "p0", False)),
        Step(SLICE, ("%1", 0, width, 1)),
        Step("aten.silu.default", ("%2",)),
        Step(SLICE, ("%1", width, 2 * width, 1)),
        Step("aten.mul.Tensor", ("%3", "%4")),
        Step(MATMUL, ("%5", "p1", False)),
    )
    return Body((True, True), steps), [(E, H, 2 * width), (E, width, H)]


FORMS: dict[str, Callable[[Layer], tuple[Body, Shapes]]] = {
    "gated": _gated,
    "clamped_interleaved": _clamped_interleaved,
    "squared_relu": _squared_relu,
    "weighted_input": _weighted_input,
}
"""What experts compute, and the shapes of their parameters."""

LAYERS = {
    layer.name: layer
    for layer in (
        Layer("Qwen3-VL-30B-A3B", 128, 8, 2048, 768, "gated"),
        Layer("Kimi-VL-A3B", 64, 6, 2048, 1408, "gated"),
        Layer("gpt-oss-20b", 32, 4, 2880, 2880, "clamped_interleaved"),
        Layer("Nemotron-H-like", 64, 6, 2688, 1856, "squared_relu"),
        Layer("Llama-4-Scout", 16, 1, 5120, 8192, "weighted_input"),
    )
}
"""By name. Sizes are those of the published configurations, apart from the one named "-like"."""
