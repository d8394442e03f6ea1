"""Bodies that models have, with parameters for them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step


class Sizes(NamedTuple):
    """T tokens, K experts a token, E experts, H hidden and I intermediate size."""

    T: int
    K: int
    E: int
    H: int
    I: int  # noqa: E741  # the field's name for it


def concatenated(activation: Callable[[str, int], list[Step]], sizes: Sizes) -> Body:
    """activation(gate) * up, both halves of one product of a transposed matrix, weighted output."""
    steps = [Step(MATMUL, ("x", "p0", True)), Step(SLICE, ("%0", 0, sizes.I, 1))]
    steps += activation("%1", 2)
    gate = f"%{len(steps) - 1}"
    steps.append(Step(SLICE, ("%0", sizes.I, 2 * sizes.I, 1)))
    steps.append(Step("aten.mul.Tensor", (gate, f"%{len(steps) - 1}")))
    steps.append(Step(MATMUL, (f"%{len(steps) - 1}", "p1", True)))
    steps.append(Step("aten.mul.Tensor", (f"%{len(steps) - 1}", "w")))
    return Body((True, True), tuple(steps))


def one(op: str, **kwargs) -> Callable[[str, int], list[Step]]:
    return lambda value, position: [Step(op, (value,), tuple(kwargs.items()))]


def cast_silu(value: str, position: int) -> list[Step]:
    return [
        Step("aten._to_copy.default", (value,), (("dtype", "float32"),)),
        Step("aten.silu.default", (f"%{position}",)),
        Step("aten._to_copy.default", (f"%{position + 1}",), (("dtype", "float32"),)),
    ]


def clamped_interleaved(sizes: Sizes) -> Body:
    """Gate and up take turns, are biased and clamped; matrices as they are; biased output."""
    steps = (
        Step(MATMUL, ("x", "p0", False)),
        Step("aten.add.Tensor", ("%0", "p1")),
        Step(SLICE, ("%1", 1, 2 * sizes.I, 2)),
        Step("aten.clamp.default", ("%2", -1.0, 1.0)),
        Step("aten.add.Tensor", ("%3", 1)),
        Step(SLICE, ("%1", 0, 2 * sizes.I, 2)),
        Step("aten.clamp.default", ("%5", None, 1.0)),
        Step("aten.mul.Tensor", ("%6", 1.702)),
        Step("aten.sigmoid.default", ("%7",)),
        Step("aten.mul.Tensor", ("%6", "%8")),
        Step("aten.mul.Tensor", ("%4", "%9")),
        Step(MATMUL, ("%10", "p2", False)),
        Step("aten.add.Tensor", ("%11", "p3")),
        Step("aten.mul.Tensor", ("%12", "w")),
    )
    return Body((True, True, True, True), steps)


def squared_relu(sizes: Sizes) -> Body:
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.relu.default", ("%0",)),
        Step("aten.pow.Tensor_Scalar", ("%1", 2)),
        Step(MATMUL, ("%2", "p1", True)),
        Step("aten.mul.Tensor", ("%3", "w")),
    )
    return Body((True, True), steps)


def two_products_weighted_input(sizes: Sizes) -> Body:
    """Two matrices of their own with biases inside the products; the input is weighted."""
    steps = (
        Step("aten.mul.Tensor", ("x", "w")),
        Step(MATMUL, ("%0", "p0", True, "p1")),
        Step("aten.silu.default", ("%1",)),
        Step(MATMUL, ("%0", "p2", False)),
        Step("aten.mul.Tensor", ("%2", "%3")),
        Step(MATMUL, ("%4", "p3", False, "p4")),
    )
    return Body((True,) * 5, steps)


BODIES: dict[str, Callable[[Sizes], Body]] = {
    "swiglu": lambda sizes: concatenated(one("aten.silu.default"), sizes),
    "geglu_erf": lambda sizes: concatenated(one("aten.gelu.default"), sizes),
    "geglu_tanh": lambda sizes: concatenated(one("aten.gelu.default", approximate="tanh"), sizes),
    "float32_silu": lambda sizes: concatenated(cast_silu, sizes),
    "clamped_interleaved": clamped_interleaved,
    "squared_relu": squared_relu,
    "two_products_weighted_input": two_products_weighted_input,
}


def shapes(name: str, s: Sizes) -> list[tuple[int, ...]]:
    """The shapes of a body's parameters."""
    return {
        "clamped_interleaved": [(s.E, s.H, 2 * s.I), (s.E, 2 * s.I), (s.E, s.I, s.H), (s.E, s.H)],
        "squared_relu": [(s.E, s.I, s.H), (s.E, s.H, s.I)],
        "two_products_weighted_input": [
            (s.E, s.I, s.H),
            (s.E, s.I),
            (s.E, s.H, s.I),
            (s.E, s.I, s.H),
            (s.E, s.H),
        ],
    }.get(name, [(s.E, 2 * s.I, s.H), (s.E, s.H, s.I)])


class Problem(NamedTuple):
    """The arguments of the experts op."""

    x: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor
    params: list[torch.Tensor]
    body: Body

    def to_float32(self) -> "Problem":
        """The same numbers, in a dtype that rounds less."""
        params = [param.float() for param in self.params]
        return Problem(self.x.float(), self.index, self.weight.float(), params, self.body)


def problem(name: str, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Problem:
    """Random numbers for a body, of a size that keeps its activations curved."""
    generator = torch.Generator().manual_seed(sum(sizes))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    params = [
        random(*shape) / (shape[-1] ** 0.5 if len(shape) == 3 else 2)
        for shape in shapes(name, sizes)
    ]
    scores = torch.rand(sizes.T, sizes.E, generator=generator)
    weight, index = (scores * 4).softmax(-1).topk(min(sizes.K, sizes.E), dim=-1)
    return Problem(
        random(sizes.T, sizes.H).to(device, dtype),
        index.to(device),
        weight.to(device, dtype),
        [param.to(device, dtype) for param in params],
        BODIES[name](sizes),
    )
