"""Bodies of experts, in the forms that models have, with parameters for them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step

Sizes = tuple[int, ...]
Made = tuple[Body, list[Sizes]]
"""A body, and the sizes of its parameters without the dimension of experts."""


def swiglu(H: int, width: int, *, transposed: bool = True) -> Made:
    """Gate and up in one weight, half by half."""
    steps = (
        Step(MATMUL, ("x", "p0", transposed)),
        Step(SLICE, ("%0", 0, width, 1)),
        Step("aten.silu.default", ("%1",)),
        Step(SLICE, ("%0", width, 2 * width, 1)),
        Step("aten.mul.Tensor", ("%2", "%3")),
        Step(MATMUL, ("%4", "p1", transposed)),
        Step("aten.mul.Tensor", ("%5", "w")),
    )
    sizes = [(2 * width, H), (H, width)] if transposed else [(H, 2 * width), (width, H)]
    return Body((True, True), steps), sizes


def swiglu_k_major(H: int, width: int) -> Made:
    """The same with [E, K, N] weights."""
    return swiglu(H, width, transposed=False)


def interleaved_with_biases(H: int, width: int) -> Made:
    """Gate and up column by column, clamped, with biases everywhere."""
    steps = (
        Step(MATMUL, ("x", "p0", False)),
        Step("aten.add.Tensor", ("%0", "p1")),
        Step(SLICE, ("%1", 1, 2 * width, 2)),
        Step("aten.clamp.default", ("%2", -0.5, 0.5)),
        Step("aten.add.Tensor", ("%3", 1)),
        Step(SLICE, ("%1", 0, 2 * width, 2)),
        Step("aten.clamp.default", ("%5", None, 0.5)),
        Step("aten.mul.Tensor", ("%6", 1.702)),
        Step("aten.sigmoid.default", ("%7",)),
        Step("aten.mul.Tensor", ("%6", "%8")),
        Step("aten.mul.Tensor", ("%4", "%9")),
        Step(MATMUL, ("%10", "p2", False)),
        Step("aten.add.Tensor", ("%11", "p3")),
        Step("aten.mul.Tensor", ("%12", "w")),
    )
    return Body((True,) * 4, steps), [(H, 2 * width), (2 * width,), (width, H), (H,)]


def separate_projections(H: int, width: int) -> Made:
    """Gate and up in weights of their own, with a bias inside the last product."""
    steps = (
        Step(MATMUL, ("x", "p2", True)),
        Step("aten.gelu.default", ("%0",), (("approximate", "tanh"),)),
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.mul.Tensor", ("%1", "%2")),
        Step(MATMUL, ("%3", "p1", True, "p3")),
        Step("aten.mul.Tensor", ("%4", "w")),
        Step("aten.mul.Tensor", ("%5", 0.8)),
    )
    return Body((True,) * 4, steps), [(width, H), (H, width), (width, H), (H,)]


def squared_relu(H: int, width: int) -> Made:
    """No gate."""
    steps = (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.relu.default", ("%0",)),
        Step("aten.pow.Tensor_Scalar", ("%1", 2)),
        Step(MATMUL, ("%2", "p1", True)),
        Step("aten.mul.Tensor", ("%3", "w")),
    )
    return Body((True, True), steps), [(width, H), (H, width)]


def weighted_input(H: int, width: int) -> Made:
    """The combine weight multiplies what the expert reads."""
    steps = (
        Step("aten.mul.Tensor", ("x", "w")),
        Step(MATMUL, ("%0", "p0", False)),
        Step(SLICE, ("%1", width, 2 * width, 1)),
        Step(SLICE, ("%1", 0, width, 1)),
        Step("aten.silu.default", ("%3",)),
        Step("aten.mul.Tensor", ("%2", "%4")),
        Step(MATMUL, ("%5", "p1", False)),
    )
    return Body((True, True), steps), [(H, 2 * width), (width, H)]


FORMS: dict[str, Callable[[int, int], Made]] = {
    make.__name__: make
    for make in (
        swiglu,
        swiglu_k_major,
        interleaved_with_biases,
        separate_projections,
        squared_relu,
        weighted_input,
    )
}


def random_params(
    sizes: Sequence[Sizes], experts: int, dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Parameters that keep values near 1 through both products."""
    return [
        (torch.randn(experts, *size, generator=generator) * (3 / max(size)) ** 0.5).to(dtype)
        for size in sizes
    ]


def random_routing(
    tokens: int, top_k: int, experts: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Different experts for each token, and their weights: index and weight, ``[T, K]``."""
    scores = torch.rand(tokens, experts, generator=generator)
    weight, index = scores.topk(top_k, dim=-1)
    return index, weight.to(dtype)


def scaled(made: Made) -> Made:
    """Return a body whose matrices are [E, N, K], each product times one scale a column."""
    body, sizes = made
    steps: list[Step] = []
    sizes, names, scale_of = list(sizes), {}, {}

    def renamed(arg: object) -> object:
        return names.get(arg, arg) if isinstance(arg, str) else arg

    for position, step in enumerate(body.steps):
        args = tuple(renamed(arg) for arg in step.args)
        if step.op == MATMUL:
            weight = int(step.args[1][1:])
            if not step.args[2]:
                sizes[weight] = sizes[weight][::-1]
            scale_of[weight] = len(sizes)
            sizes.append(sizes[weight][:1])
            steps.append(Step(MATMUL, (*args[:2], True)))
            args = (f"%{len(steps) - 1}", f"p{scale_of[weight]}")
            step = Step("aten.mul.Tensor", args)
        steps.append(Step(step.op, args, step.kwargs))
        names[f"%{position}"] = f"%{len(steps) - 1}"
    return Body((*body.per_expert, *[True] * len(scale_of)), tuple(steps)), sizes


def integers_and_scales(
    body: Body, params: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Random int8 matrices and scales in the place of the parameters of a scaled body."""
    found = list(params)
    for step, after in zip(body.steps, body.steps[1:], strict=False):
        if step.op == MATMUL:
            weight, scale = int(step.args[1][1:]), int(after.args[1][1:])
            shape, dtype = params[weight].shape, params[weight].dtype
            found[weight] = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
            size = torch.rand(shape[:2], generator=generator) + 0.5
            found[scale] = (size * (3 / shape[-1]) ** 0.5 / 74).to(dtype)
    return found
