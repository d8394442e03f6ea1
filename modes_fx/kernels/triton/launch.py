"""Launch the expert kernels: nothing on the host waits for the device.

T tokens, K experts per token, E experts, H hidden size, I intermediate size.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from modes_fx.kernels.triton import decode, prefill
from modes_fx.kernels.triton.calls import launch
from modes_fx.kernels.triton.compaction import (
    Gate,
    Slots,
    compact,
    gate,
    gate_and_compact,
    padded_experts,
)
from modes_fx.kernels.triton.config import (
    Configurations,
    GemmConfig,
    PrefillRule,
    VectorConfig,
    choose,
    expected_rows,
)
from modes_fx.kernels.triton.limits import Device, fit
from modes_fx.kernels.triton.plan import Product
from modes_fx.kernels.triton.problem import Operand, Problem, prepare

DECODE_TOKENS = 1
"""Up to so many tokens nothing is sorted: those of one token differ, so no weight is read twice."""
ROW_BYTES_AT_ONCE = 1024
_FUSION = {"enable_fp_fusion": True}  # Triton's default changes between versions


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
    if len(x) <= DECODE_TOKENS:
        return run_decode(problem, configurations)
    rule = _rule_for(problem, configurations)
    return run_prefill(problem, rule, compact(problem.index, num_experts, rule.up.block_m))


def gated_experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    options: Gate,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate the pairs and sum the kept experts' outputs, the gate in the kernels that sort.

    Args:
        x: as in :func:`experts`, and so are the others.
        index: the router's choice, before the gate.
        weight: the combine weights.
        options: what the gate reads beside them.
        params: the parameters of the body.
        body: what an expert computes.
        num_experts: E.
        device: what block sizes are chosen for.

    Returns:
        The output ``[T, H]``, and the kept index and weight ``[T, K]``.

    Raises:
        UnsupportedBodyError: the kernels cannot run the body.
        DeviceLimitError: they do not fit the device.
    """
    if index.numel() == 0:
        return torch.zeros_like(x), index.clone(), weight.clone()
    problem = prepare(x, index, weight, params, body, num_experts, device)
    configurations = configurations_for(problem)
    if len(x) <= DECODE_TOKENS:
        kept_index, kept_weight = gate(index, weight, num_experts, options)
        problem = replace(problem, index=kept_index, weight=kept_weight)
        return run_decode(problem, configurations), kept_index, kept_weight
    rule = _rule_for(problem, configurations)
    slots, kept_index, kept_weight = gate_and_compact(
        index, weight, num_experts, options, rule.up.block_m
    )
    problem = replace(problem, index=kept_index, weight=kept_weight)
    return run_prefill(problem, rule, slots), kept_index, kept_weight


def _rule_for(problem: Problem, configurations: Configurations) -> PrefillRule:
    T, K = problem.index.shape
    rows = expected_rows(T, K, problem.num_experts)
    return fitted(problem, configurations.for_rows(rows, problem.x.dtype))


def configurations_for(problem: Problem) -> Configurations:
    """Return the configurations of a call's device and shape."""
    name = torch.cuda.get_device_name(problem.x.device) if problem.x.is_cuda else ""
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
    x, printed = problem.x, problem.printed
    plan, sizes = printed.plan, problem.sizes
    T, K = problem.index.shape
    E_P2 = padded_experts(problem.num_experts)
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
    BN = min(triton.next_power_of_2(plan.hidden), 1024)
    launch(
        prefill.sum_pairs, (T, triton.cdiv(plan.hidden, BN)),
        y, slots.pair_slot, out, T, plan.hidden, K, 1, BN, num_warps=4, **_FUSION,
    )  # fmt: skip
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
        **vector_block(up, first),
    )  # fmt: skip
    matrix = problem.operand(plan.down)
    down = configurations.for_layout(matrix.contiguous).down
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    launch(
        decode.decode_down, (T, triton.cdiv(plan.hidden, down.block_n)),
        h, matrix.matrix, out, *choice, *matrix.strides, problem.vectors(2),
        **sizes, TAIL=printed.tail, DOT=problem.dot(plan.down)[0],
        **vector_block(down, matrix),
    )  # fmt: skip
    return out


def fitted(problem: Problem, rule: PrefillRule) -> PrefillRule:
    """Return block sizes as they are launched: small enough for the device.

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
    return fit(gemm, streams, rows, weights, problem.device)


def vector_block(vector: VectorConfig, operand: Operand) -> dict[str, Any]:
    """Return block sizes and options for a kernel of single tokens.

    No more bytes of a row are read at a time than registers hold.
    """
    block_k = min(vector.block_k, ROW_BYTES_AT_ONCE // operand.matrix.dtype.itemsize)
    return {"BN": vector.block_n, "BK": block_k, "num_warps": vector.warps, **_FUSION}


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
