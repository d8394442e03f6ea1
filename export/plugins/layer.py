"""One layer of experts as two plugins: the first products, and the second with each token's sum.

Both skip what the gate left out: a pair whose expert is E ends its program. The kernels are those
of single tokens, which read an expert's weights for every pair: right for any number of tokens, and
meant for decoding.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from modes_fx.export.plugins.kernels import plugin_down, plugin_up
from modes_fx.kernels.triton.calls import Call
from modes_fx.kernels.triton.launch import configurations_for, vector_block
from modes_fx.kernels.triton.limits import Device
from modes_fx.kernels.triton.problem import Operand, Problem, prepare


@dataclass(frozen=True, eq=False)
class Plugin:
    """One plugin: a kernel with everything but its tensors.

    Its inputs are rows (``x [T, H]``, or what the first plugin put out), the pairs' weights and
    int32 experts ``[T, K]``, and some of the layer's parameters.

    Attributes:
        name: of the op, the same for layers that compute alike.
        kernel: of Triton.
        groups: which parameters the kernel takes, by tuple; one may occur more than once.
        per_pair: whether there is a row of programs, and of output, for each pair, not each token.
        blocks: how many programs a row has.
        columns: of the output.
        dtype: of the output.
        options: the kernel's constants, and how it is launched.
    """

    name: str
    kernel: Any
    groups: tuple[tuple[int, ...], ...]
    per_pair: bool
    blocks: int
    columns: int
    dtype: torch.dtype
    options: dict[str, Any]

    @property
    def params(self) -> tuple[int, ...]:
        """The parameters among its inputs, in order."""
        return tuple(number for group in self.groups for number in group)

    @property
    def schema(self) -> str:
        """The op's arguments and result, as torch.library writes them."""
        names = ("rows", "weight", "index", *(f"p{i}" for i in range(len(self.params))))
        return f"({', '.join(f'Tensor {name}' for name in names)}) -> Tensor"

    def output(self, index: Tensor) -> Tensor:
        """Return room for what it puts out."""
        rows = index.numel() if self.per_pair else index.shape[0]
        return index.new_empty(rows, self.columns, dtype=self.dtype)

    def call(self, *inputs: Tensor) -> Call:
        """Return a launch with these inputs; the output is its last argument."""
        rows, weight, index, *params = (value.contiguous() for value in inputs)
        taken = iter(params)
        tuples = [tuple(next(taken) for _ in group) for group in self.groups]
        grid = (index.numel() if self.per_pair else index.shape[0], self.blocks)
        args = (rows, weight, index, *tuples, self.output(index))
        return Call(self.kernel, grid, args, self.options)


def plugins_of(
    x: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    top_k: int,
    target: str,
) -> tuple[Plugin, Plugin]:
    """Return the plugins that compute a layer.

    Args:
        x: ``[T, H]``; read for its dtype and H alone, and so are the others.
        weight: ``[T, K]`` combine weights.
        params: of the body.
        body: what an expert computes, as JSON.
        num_experts: E.
        top_k: K.
        target: such as ``sm_89``; block sizes are chosen for it.

    Raises:
        UnsupportedBodyError: the kernels cannot run the body.
    """

    def described(value: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=value.dtype, device="meta")

    problem = prepare(
        described(x, 1, x.shape[-1]),
        torch.empty(1, top_k, dtype=torch.int32, device="meta"),
        described(weight, 1, top_k),
        [described(param, *param.shape) for param in params],
        body,
        num_experts,
        Device(target, multiprocessors=1, shared_bytes=0),
    )
    facts = [(tuple(p.shape), p.dtype) for p in params]
    alike = (body, facts, x.dtype, weight.dtype, x.shape[-1], num_experts, top_k, target)
    digest = hashlib.sha256(repr(alike).encode()).hexdigest()[:12]
    return _up(problem, digest), _down(problem, digest)


def _up(problem: Problem, digest: str) -> Plugin:
    printed, plan = problem.printed, problem.printed.plan
    configurations = configurations_for(problem)
    first, second = problem.ups
    weights = {product.value: product.weight for product in plan.ups}
    used = [weights[stream.product] for stream in printed.streams]
    matrices = tuple(dict.fromkeys((used[0], used[-1])))
    choice = configurations.for_layout(first.contiguous).up
    return Plugin(
        name=f"up_{digest}",
        kernel=plugin_up,
        groups=(matrices, *map(tuple, printed.vectors[:2])),
        per_pair=True,
        blocks=triton.cdiv(plan.intermediate, choice.block_n),
        columns=plan.intermediate,
        dtype=plan.values[plan.down.rows].dtype,
        options={
            "FIRST": _place(first),
            "SECOND": _place(second),
            "SECOND_MATRIX": len(matrices) - 1,
            **problem.sizes,
            "PROLOGUE": printed.prologue,
            "MIDDLE": printed.middle,
            "STREAMS": problem.streams,
            "ODD_FIRST": printed.streams[0].start == 1,
            "DOT": problem.dot(plan.ups[0])[0],
            **vector_block(choice, first),
        },
    )


def _down(problem: Problem, digest: str) -> Plugin:
    printed, plan = problem.printed, problem.printed.plan
    matrix = problem.operand(plan.down)
    choice = configurations_for(problem).for_layout(matrix.contiguous).down
    return Plugin(
        name=f"down_{digest}",
        kernel=plugin_down,
        groups=((plan.down.weight,), tuple(printed.vectors[2])),
        per_pair=False,
        blocks=triton.cdiv(plan.hidden, choice.block_n),
        columns=plan.hidden,
        dtype=problem.x.dtype,
        options={
            "MATRIX": _place(matrix),
            **problem.sizes,
            "TAIL": printed.tail,
            "DOT": problem.dot(plan.down)[0],
            **vector_block(choice, matrix),
        },
    )


def _place(operand: Operand) -> tuple[int, ...]:
    return (int(operand.matrix.storage_offset()), *operand.strides)
