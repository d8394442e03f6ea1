"""Launch the expert kernels: nothing on the host waits for the device.

T tokens, K experts per token, E experts, H hidden size, I intermediate size.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from modes_fx.kernels.triton import decode, prefill
from modes_fx.kernels.triton.calls import launch
from modes_fx.kernels.triton.compaction import Slots, compact
from modes_fx.kernels.triton.config import (
    Configurations,
    GemmConfig,
    PrefillRule,
    Shape,
    choose,
    dtype_name,
    expected_rows,
)
from modes_fx.kernels.triton.limits import Device, device_of, fit
from modes_fx.kernels.triton.plan import ParameterFacts, Product, UnsupportedBodyError
from modes_fx.kernels.triton.printer import PrintedBody, print_body

DECODE_TOKENS = 1
"""Up to so many tokens nothing is sorted: one token's experts differ, so no weight is read twice."""
INTERLEAVED = 3

ROW_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}
WEIGHT_DTYPES = {*ROW_DTYPES, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz}
_FUSION = {"enable_fp_fusion": True}  # Triton's default changes between versions


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
    return Problem(x, *choice, params, printed, num_experts, device or device_of(x.device))


def experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    device: Device | None = None,
) -> Tensor:
    """Sum the kept experts' outputs of every token; see ``modes_fx.kernels.reference.experts``.

    Args:
        x: ``[T, H]`` hidden states.
        index: ``[T, K]`` integer; ids >= ``num_experts`` are skipped pairs and never touched.
        weight: ``[T, K]`` combine weights.
        params: the parameters of the body.
        body: what an expert computes, as JSON.
        num_experts: E.
        device: what block sizes are chosen for; None for where x is.

    Returns:
        ``[T, H]`` in the dtype of ``x``.

    Raises:
        UnsupportedBodyError: the kernels cannot run the body.
        DeviceLimitError: they do not fit the device.
    """
    if index.numel() == 0:
        return torch.zeros_like(x)
    problem = prepare(x, index, weight, params, body, num_experts, device)
    configurations = configurations_for(problem)
    with _current(x):
        if len(x) <= DECODE_TOKENS:
            return run_decode(problem, configurations)
        rule = fitted(problem, configurations.for_rows(expected_rows(*index.shape, num_experts)))
        slots = compact(problem.index, num_experts, rule.up.block_m)
        return run_prefill(problem, rule, slots)


def configurations_for(problem: Problem) -> Configurations:
    """Return the configurations of a call's device and shape."""
    name = "" if problem.x.device.type == "cpu" else torch.cuda.get_device_name(problem.x.device)
    return choose(problem.device.target, problem.shape, name)


def run_prefill(
    problem: Problem, rule: PrefillRule, slots: Slots, *, atomic: bool = False
) -> Tensor:
    """Run both GEMMs over the sorted pairs, and sum each token's rows.

    Args:
        problem: the call.
        rule: block sizes, from :func:`fitted`.
        slots: the sorted pairs, in tiles of the rule's ``block_m``.
        atomic: add to the result as rows are done, in float32, instead of summing them after: no
            rows are stored, but the order of the sum, and so the last bits, vary from run to run.

    Returns:
        ``[T, H]`` in the dtype of x.
    """
    x, printed, device = problem.x, problem.printed, problem.device
    plan, sizes = printed.plan, problem.sizes
    T, K = problem.index.shape
    E_P2 = triton.next_power_of_2(problem.num_experts)
    order = (problem.weight, slots.slot_pair, slots.expert_start, slots.tile_start)

    first, second = problem.ups
    up_dot, up_precision = problem.dot(plan.ups[0])
    h = x.new_empty(T * K, plan.intermediate, dtype=plan.values[plan.down.rows].dtype)
    programs = _programs(rule.up, problem, plan.intermediate)
    launch(
        prefill.up_gemm, (programs,),
        x, first.matrix, second.matrix, h, *order, programs, x.stride(0),
        *first.strides, *second.strides, problem.vectors(0), problem.vectors(1),
        **sizes, E_P2=E_P2, PROLOGUE=printed.prologue, MIDDLE=printed.middle,
        STREAMS=problem.streams, ODD_FIRST=printed.streams[0].start == 1,
        DOT=up_dot, PRECISION=up_precision, **_launch_options(rule.up),
    )  # fmt: skip

    down_dot, down_precision = problem.dot(plan.down)
    matrix = problem.operand(plan.down)
    if atomic:
        y = x.new_zeros(T, plan.hidden, dtype=torch.float32)
    else:
        y = x.new_empty(T * K, plan.hidden)
    programs = _programs(rule.down, problem, plan.hidden)
    launch(
        prefill.down_gemm, (programs,),
        h, matrix.matrix, y, *order, programs, *matrix.strides, problem.vectors(2),
        **sizes, E_P2=E_P2, TAIL=printed.tail, DOT=down_dot, PRECISION=down_precision,
        ATOMIC=atomic, **_launch_options(rule.down),
    )  # fmt: skip
    if atomic:
        return y.to(x.dtype)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    BT, BN = (1, 1024) if device.target != "interpreter" else (16, 128)
    launch(
        prefill.sum_pairs, (triton.cdiv(T, BT), triton.cdiv(plan.hidden, BN)),
        y, slots.pair_slot, out, T, plan.hidden, K, BT, BN, num_warps=4, **_FUSION
    )
    return out


def run_decode(problem: Problem, configurations: Configurations) -> Tensor:
    """Run both products pair by pair; meant for a single token.

    Returns:
        ``[T, H]`` in the dtype of x.
    """
    x, printed, sizes = problem.x, problem.printed, problem.sizes
    plan = printed.plan
    T, K = problem.index.shape
    choice = (problem.weight, problem.index)
    first, second = problem.ups
    up = configurations.for_layout(first.contiguous).up
    h = x.new_empty(T * K, plan.intermediate, dtype=plan.values[plan.down.rows].dtype)
    launch(
        decode.decode_up, (T * K, triton.cdiv(plan.intermediate, up.block_n)),
        x, first.matrix, second.matrix, h, *choice, x.stride(0),
        *first.strides, *second.strides, problem.vectors(0), problem.vectors(1),
        **sizes, PROLOGUE=printed.prologue, MIDDLE=printed.middle, STREAMS=problem.streams,
        ODD_FIRST=printed.streams[0].start == 1, DOT=problem.dot(plan.ups[0])[0],
        BN=up.block_n, BK=up.block_k, num_warps=up.warps, **_FUSION,
    )  # fmt: skip
    matrix = problem.operand(plan.down)
    down = configurations.for_layout(matrix.contiguous).down
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    launch(
        decode.decode_down, (T, triton.cdiv(plan.hidden, down.block_n)),
        h, matrix.matrix, out, *choice, *matrix.strides, problem.vectors(2),
        **sizes, TAIL=printed.tail, DOT=problem.dot(plan.down)[0],
        BN=down.block_n, BK=down.block_k, num_warps=down.warps, **_FUSION,
    )  # fmt: skip
    return out


def fitted(problem: Problem, rule: PrefillRule) -> PrefillRule:
    """Return block sizes as they are launched: scaled to the dtypes, and small enough to run.

    Raises:
        DeviceLimitError: nothing fits the device.
    """
    up = _fitted(problem, rule.up, problem.printed.plan.ups[0], len(problem.printed.streams))
    down = _fitted(problem, rule.down, problem.printed.plan.down, 1)
    block_m = min(up.block_m, down.block_m)
    return PrefillRule(
        up_to_rows=rule.up_to_rows,
        up=up.model_copy(update={"block_m": block_m}),
        down=down.model_copy(update={"block_m": block_m}),
    )


def _fitted(problem: Problem, gemm: GemmConfig, product: Product, streams: int) -> GemmConfig:
    rows = problem.printed.plan.values[product.rows].dtype.itemsize
    weights = problem.params[product.weight].dtype.itemsize
    scaled = gemm.model_copy(update={"block_k": max(gemm.block_k * 2 // rows, 16)})
    return fit(scaled, streams, rows, weights, problem.device)


def _programs(gemm: GemmConfig, problem: Problem, columns: int) -> int:
    """Return how many programs run a GEMM: what the device holds, but no more than tiles."""
    pairs = problem.index.numel()
    tiles = min(pairs, problem.num_experts) + pairs // gemm.block_m
    work = tiles * triton.cdiv(columns, gemm.block_n)
    return max(min(problem.device.multiprocessors * gemm.occupancy, work), 1)


def _launch_options(gemm: GemmConfig) -> dict[str, Any]:
    return {
        "BM": gemm.block_m,
        "BN": gemm.block_n,
        "BK": gemm.block_k,
        "num_warps": gemm.warps,
        "num_stages": gemm.stages,
        **_FUSION,
    }


def _current(x: Tensor) -> Any:
    """Make the device of a tensor the one that Triton launches on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
