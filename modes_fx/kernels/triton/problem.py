"""One call of the experts, checked and ready to be launched.

T tokens, K experts per token, E experts, H hidden size, I intermediate size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton.language as tl
from torch import Tensor

from modes_fx.kernels.triton.config import Shape, dtype_name
from modes_fx.kernels.triton.limits import Device, device_of
from modes_fx.kernels.triton.plan import ParameterFacts, Product, UnsupportedBodyError
from modes_fx.kernels.triton.printer import PrintedBody, print_body

INTERLEAVED = 3

ROW_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}
WEIGHT_DTYPES = {*ROW_DTYPES, torch.float8_e4m3fn}


@dataclass(frozen=True)
class Operand:
    """A ``[E, inner, columns]`` view of the weights that one accumulator multiplies with."""

    matrix: Tensor

    @property
    def strides(self) -> tuple[int, int, int]:
        """Strides over experts, columns and inner dimension, as the kernels take them."""
        return self.matrix.stride(0), self.matrix.stride(2), self.matrix.stride(1)

    @property
    def contiguous(self) -> Literal["k", "n"]:
        """Along which dimension its numbers are neighbours."""
        return "k" if self.matrix.stride(1) == 1 else "n"


@dataclass(frozen=True)
class Problem:
    """One call of the experts, ready to be launched.

    Attributes:
        x: ``[T, H]``.
        index: ``[T, K]``, contiguous.
        weight: ``[T, K]``, contiguous.
        params: the body's parameters.
        printed: the body.
        num_experts: E.
        device: where it runs.
    """

    x: Tensor
    index: Tensor
    weight: Tensor
    params: Sequence[Tensor]
    printed: PrintedBody
    num_experts: int
    device: Device

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that the kernels are compiled for."""
        plan = self.printed.plan
        return {
            "H": plan.hidden,
            "I": plan.intermediate,
            "E": self.num_experts,
            "K": self.index.shape[1],
        }

    @property
    def streams(self) -> int:
        """How the first GEMM accumulates: 1, 2 or ``INTERLEAVED``."""
        streams = self.printed.streams
        if len(streams) == 2 and streams[0].product == streams[1].product:
            starts, strides = {s.start for s in streams}, {s.stride for s in streams}
            whole = 2 * self.printed.plan.intermediate
            width = self.printed.plan.values[streams[0].product].width
            if strides == {2} and starts == {0, 1} and width == whole:
                return INTERLEAVED
        return len(streams)

    @property
    def ups(self) -> tuple[Operand, Operand]:
        """The weights of the first GEMM's accumulators; the second is unused with one."""
        plan, streams = self.printed.plan, self.printed.streams
        products = {product.value: product for product in plan.ups}
        views = [self.operand(products[stream.product]).matrix for stream in streams]
        if self.streams != INTERLEAVED:
            views = [
                view[:, :, s.start : s.start + s.stride * (plan.intermediate - 1) + 1 : s.stride]
                for view, s in zip(views, streams, strict=True)
            ]
        return Operand(views[0]), Operand(views[-1])

    def operand(self, product: Product) -> Operand:
        """Return the weights of a product."""
        matrix = self.params[product.weight]
        return Operand(matrix.transpose(1, 2) if product.transposed else matrix)

    def vectors(self, phase: int) -> tuple[Tensor, ...]:
        """Return the parameters that prologue (0), middle (1) or tail (2) loads from."""
        return tuple(self.params[i] for i in self.printed.vectors[phase])

    def dot(self, product: Product) -> tuple[Any, str]:
        """Return the dtype that a product multiplies in, and its precision."""
        dtype = self.printed.plan.values[product.rows].dtype
        exact = torch.get_float32_matmul_precision() == "highest"
        can_round = not self.device.is_amd or self.device.target == "gfx942"
        rounded = dtype == torch.float32 and not exact and can_round
        return ROW_DTYPES[dtype], "tf32" if rounded else "ieee"

    @property
    def shape(self) -> Shape:
        """What configurations are chosen by."""
        plan = self.printed.plan
        weights = self.params[plan.down.weight].dtype
        return Shape(
            experts=self.num_experts,
            hidden=plan.hidden,
            intermediate=plan.intermediate,
            streams=len(self.printed.streams),
            dtype=dtype_name(weights),
        )


def prepare(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    device: Device | None = None,
) -> Problem:
    """Check a call, and print its body.

    Args:
        x: as in :func:`experts`, and so are the others.
        index: the choice.
        weight: the combine weights.
        params: the body's parameters.
        body: its JSON.
        num_experts: E.
        device: what block sizes are chosen for.

    Raises:
        UnsupportedBodyError: the kernels cannot run it; the message says why.
    """
    facts = ParameterFacts.of(params)
    for value, known in ((x.dtype, set(ROW_DTYPES)), *((p.dtype, WEIGHT_DTYPES) for p in params)):
        if value not in known:
            raise UnsupportedBodyError(f"the kernels do not compute with {dtype_name(value)}")
    device = device or device_of(x.device)
    if any(p.dtype == torch.float8_e4m3fn for p in params) and not device.has_float8:
        raise UnsupportedBodyError(f"{device.target} does not convert float8_e4m3fn")
    printed = print_body(body, facts, x.dtype, weight.dtype, x.shape[1])
    plan = printed.plan
    for product in (*plan.ups, plan.down):
        if plan.values[product.rows].dtype not in ROW_DTYPES:
            raise UnsupportedBodyError("its rows are of a dtype the kernels do not multiply")
    if plan.output != plan.hidden:
        raise UnsupportedBodyError(f"it gives {plan.output} columns for {plan.hidden}")
    for number in {i for phase in printed.vectors for i in phase}:
        if not params[number].is_contiguous():
            raise UnsupportedBodyError(f"p{number} is not contiguous")
    x = x if x.stride(1) == 1 else x.contiguous()
    choice = (index.contiguous(), weight.contiguous())
    return Problem(x, *choice, params, printed, num_experts, device)
