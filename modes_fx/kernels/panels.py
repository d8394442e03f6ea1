"""Packed weights: every expert's matrix as panels of 32 output columns.

``[E, N, K]`` becomes ``[E, N / 32, K / group, 32, group]``, where ``group`` values of k (2 in
bfloat16, 1 in float32) of a column lie side by side: the order in which a product reads them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.kernels.pages import prefer_huge_pages

PANEL = 32
"""Output columns of a panel."""


def group_size(dtype: torch.dtype) -> int:
    """Return how many values of k of one column lie side by side."""
    return 4 // dtype.itemsize


def can_pack(weight: Tensor, *, transposed: bool) -> bool:
    """Return whether a stacked weight divides into panels."""
    if weight.dim() != 3 or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    rows, columns = weight.shape[1:] if transposed else reversed(weight.shape[1:])
    return rows % PANEL == 0 and columns % group_size(weight.dtype) == 0


@torch.no_grad()
def pack(weight: Tensor, *, transposed: bool) -> Tensor:
    """Return the panels of ``[E, N, K]`` (``transposed``) or ``[E, K, N]`` weights.

    One expert at a time, so that it needs no more memory than its result.

    Raises:
        ValueError: N is no multiple of 32, or K of the group.
    """
    if not can_pack(weight, transposed=transposed):
        raise ValueError(
            f"weights {tuple(weight.shape)} in {weight.dtype} do not divide into panels: their "
            f"output columns must be a multiple of {PANEL}"
        )
    group = group_size(weight.dtype)
    N, K = weight.shape[1:] if transposed else reversed(weight.shape[1:])
    packed = prefer_huge_pages(weight.new_empty(len(weight), N // PANEL, K // group, PANEL, group))
    for panels, matrix in zip(packed, weight, strict=True):
        columns = matrix if transposed else matrix.T.contiguous()
        # The values of a group move together, as one 32-bit unit.
        units = columns.view(torch.int32) if group > 1 else columns
        target = panels.view(torch.int32) if group > 1 else panels
        target.squeeze(-1).copy_(units.view(N // PANEL, PANEL, K // group).transpose(1, 2))
    return packed


@torch.no_grad()
def unpack(packed: Tensor) -> Tensor:
    """Return the ``[E, N, K]`` weights of panels; undoes :func:`pack`."""
    experts, blocks, groups, panel, group = packed.shape
    return packed.permute(0, 1, 3, 2, 4).reshape(experts, blocks * panel, groups * group)


def is_packed(weight: Tensor) -> bool:
    """Return whether a parameter of a body is panels."""
    return weight.dim() == 5


def matrix_of(weight: Tensor, expert: int) -> Tensor:
    """Return one expert's matrix, of stacked weights or of panels (``[N, K]`` then)."""
    return unpack(weight[expert : expert + 1])[0] if is_packed(weight) else weight[expert]


def output_columns(weight: Tensor, *, transposed: bool) -> int:
    """Return N of stacked weights or of panels."""
    if is_packed(weight):
        return weight.shape[1] * PANEL
    return weight.shape[1 if transposed else 2]


def packed_body(body: Body) -> Body:
    """Return a body that multiplies with panels what another multiplies with stacked weights."""
    steps = [
        Step(step.op, (*step.args[:2], True, *step.args[3:])) if step.op == MATMUL else step
        for step in body.steps
    ]
    return Body(body.per_expert, tuple(steps))


def matrices(body: Body) -> dict[int, bool]:
    """Return the parameters that a body multiplies with, and whether as ``[E, N, K]``."""
    products = [step for step in body.steps if step.op == MATMUL]
    return {int(step.args[1][1:]): bool(step.args[2]) for step in products}


def prepack(body: str, params: Sequence[Tensor]) -> tuple[list[Tensor], str]:
    """Pack what a body multiplies with; the originals stay as they are.

    Args:
        body: what an expert computes, as JSON.
        params: its parameters.

    Returns:
        The parameters and the body that take their place.

    Raises:
        ValueError: a weight does not divide into panels.
    """
    original = Body.from_json(body)
    packed = list(params)
    for position, transposed in matrices(original).items():
        packed[position] = pack(params[position], transposed=transposed)
    return packed, packed_body(original).to_json()
