"""Lift what one expert computes out of a trace of a loop (see ``modes_fx.kernels.epilogue``).

The run had real numbers, so rows are recognised by value: a tensor whose rows are tokens is ``x``,
a column that holds the combine weights of those tokens is ``w``.
"""

from collections.abc import Mapping
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from modes_fx.kernels.epilogue import ATEN_WHITELIST, MATMUL, Body
from modes_fx.passes import graph as g
from modes_fx.passes.loops.stacks import ExpertWeight, Stack
from modes_fx.passes.loops.trace import Trace
from modes_fx.passes.region import NoMatchError
from modes_fx.passes.rows import RowLifter, functional_name

aten = torch.ops.aten

SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default})
GEMM_OPS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default})


class Routing(NamedTuple):
    """The routing of the traced run.

    Attributes:
        x: ``[T, H]`` the experts' input.
        topk_index: ``[T, K]`` integer.
        topk_weight: ``[T, K]`` combine weights.
    """

    x: Tensor
    topk_index: Tensor
    topk_weight: Tensor


class LiftedExperts(NamedTuple):
    """What the experts of a loop compute.

    Attributes:
        body: of one expert.
        stacks: the body's parameters, by number.
        ends: the last node of each expert that the run hit that is still computed row by row.
    """

    body: Body
    stacks: tuple[Stack, ...]
    ends: tuple[Node, ...]


def expert_gemms(trace: Trace, weights: Mapping[Node, ExpertWeight]) -> dict[Node, int]:
    """Return the GEMMs of a trace that multiply rows by the weight of one expert, and whose."""
    return {
        node: weights[node.args[-1]].expert
        for node in trace.graph.nodes
        if node.target in GEMM_OPS and node.args[-1] in weights and 0 not in (g.shape(node) or ())
    }


def lift_experts(
    gemms: Mapping[Node, int], weights: Mapping[Node, ExpertWeight], routing: Routing
) -> LiftedExperts:
    """Lift every expert that the run hit, and check that all compute the same.

    Raises:
        NoMatchError: they do not, or something in an expert is no operation of the whitelist.
    """
    last_gemm = {expert: gemm for gemm, expert in gemms.items()}
    lifted = [_lift_one(expert, gemm, weights, routing) for expert, gemm in last_gemm.items()]
    if any((one.body, one.stacks) != (lifted[0].body, lifted[0].stacks) for one in lifted):
        listed = ", ".join(map(str, last_gemm))
        raise NoMatchError(f"its experts {listed} do not all compute the same")
    body, stacks, _ = lifted[0]
    return LiftedExperts(body, stacks, tuple(end for one in lifted for end in one.ends))


def _lift_one(
    expert: int, gemm: Node, weights: Mapping[Node, ExpertWeight], routing: Routing
) -> LiftedExperts:
    """Lift as much as can be said row by row behind an expert's last GEMM."""
    for end in reversed(_rows_from(gemm)):
        try:
            return LiftedExperts(*_ExpertLifter(weights, routing, expert).lift(end), (end,))
        except NoMatchError as error:
            failure = error
    raise failure


def _rows_from(gemm: Node) -> list[Node]:
    """Return a GEMM and what follows it as long as only its rows may matter."""
    rows, chain = (g.shape(gemm) or (0, 0))[-2], [gemm]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        row_wise = functional_name(user) in ATEN_WHITELIST or user.target in g.VIEW_OPS
        if not row_wise or rows not in (g.shape(user) or ())[:-1]:
            break
        chain.append(user)
    return chain


def tokens_of(end: Node, x: Tensor, weights: Mapping[Node, ExpertWeight]) -> Tensor | None:
    """Return which tokens the rows of a node are; the nearest rows of x that it reads say so."""
    pending, seen = [_Rows(end)], {_Rows(end)}
    for rows in pending:
        tokens = rows.tokens(x)
        if tokens is not None:
            return tokens
        sources = [_Rows(n, rows.span) for n in rows.node.all_input_nodes if n not in weights]
        new = [source for source in rows.cut() or sources if source not in seen]
        seen.update(new)
        pending.extend(new)
    return None


class _Rows(NamedTuple):
    """The rows of a node, or a span of them: loops cut all experts' rows into those of each."""

    node: Node
    span: tuple[int, int] | None = None

    def value(self) -> Tensor | None:
        """Return the rows, ``[n, ...]``; None where the node is no tensor."""
        value = self.node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        return value if self.span is None else value[slice(*self.span)]

    def tokens(self, x: Tensor) -> Tensor | None:
        """Return, where every row is a token, which."""
        rows = self.value()
        if rows is None or rows.dim() < 2 or rows.shape[-1:] != x.shape[-1:]:
            return None
        same = (rows.reshape(-1, 1, x.shape[-1]) == x).all(-1)
        return same.int().argmax(-1) if len(same) and bool(same.any(-1).all()) else None

    def cut(self) -> "list[_Rows]":
        """Return the one thing these rows are, where the node cuts or joins rows; else nothing."""
        args: Any = self.node.args
        start, end = self.span or (0, (g.shape(self.node) or (0,))[0])
        if self.node.target is aten.slice.Tensor and (len(args) < 2 or args[1] == 0):
            offset = args[2] if len(args) > 2 else 0
            return [_Rows(args[0], (offset + start, offset + end))]
        if self.node.target is getitem and args[0].target in SPLITS:
            parts = args[0]
            if len(parts.args) < 3 or parts.args[2] == 0:
                offset = sum(len(part) for part in parts.meta["val"][: args[1]])
                return [_Rows(parts.args[0], (offset + start, offset + end))]
        if self.node.target is aten.cat.default and (len(args) < 2 or args[1] == 0):
            offset = 0
            for part in args[0]:
                length = len(part.meta["val"])
                if (start, end) == (offset, offset + length):
                    return [_Rows(part)]
                offset += length
        return []


class _ExpertLifter(RowLifter):
    def __init__(self, weights: Mapping[Node, ExpertWeight], routing: Routing, expert: int) -> None:
        super().__init__()
        self._weights, self._routing, self._expert = weights, routing, expert
        self._stacks: list[Stack] = []
        self._token: Tensor | None = None
        self._span: tuple[int, int] | None = None
        self._names_of_rows: dict[_Rows, str] = {}

    def lift(self, end: Node) -> tuple[Body, tuple[Stack, ...]]:
        self._token = tokens_of(end, self._routing.x, self._weights)
        if self._token is None:
            raise NoMatchError(f"its expert {self._expert} reads no rows of x", end)
        result = self._value(end)
        if not any("w" in step.args for step in self._steps):
            self._step("aten.mul.Tensor", (result, "w"))
        return Body((True,) * len(self._stacks), tuple(self._steps)), tuple(self._stacks)

    def _value(self, node: Node) -> str:
        rows = _Rows(node, self._span)
        if rows not in self._names_of_rows:
            self._names_of_rows[rows] = self._leaf(node) or self._operation(node)
        return self._names_of_rows[rows]

    def _leaf(self, node: Node) -> str | None:
        if node in self._weights:
            return self._param(self._weights[node])
        rows = _Rows(node, self._span)
        if rows.tokens(self._routing.x) is not None:
            return "x"
        if self._is_combine_weight(rows.value()):
            return "w"
        if node.target in GEMM_OPS:
            return self._gemm(node)
        return self._within(*rows.cut()) if rows.cut() else None

    def _within(self, rows: _Rows) -> str:
        outer, self._span = self._span, rows.span
        name = self._value(rows.node)
        self._span = outer
        return name

    def _is_combine_weight(self, column: Tensor | None) -> bool:
        if self._token is None or column is None:
            return False
        of_expert = self._routing.topk_index[self._token] == self._expert
        wanted = (self._routing.topk_weight[self._token] * of_expert).sum(-1)
        return column.shape.numel() == len(wanted) and torch.equal(
            column.reshape(-1).to(wanted.dtype), wanted
        )

    def _param(self, weight: ExpertWeight) -> str:
        if weight.expert != self._expert:
            raise NoMatchError(f"its expert {self._expert} uses a weight of {weight.expert}")
        if weight.stack not in self._stacks:
            self._stacks.append(weight.stack)
        return f"p{self._stacks.index(weight.stack)}"

    def _gemm(self, node: Node) -> str:
        *bias, rows, matrix = node.args
        if any(weight not in self._weights for weight in (matrix, *bias)) or node.kwargs:
            raise NoMatchError("its experts multiply by something that is not their weight", node)
        weight, *biases = (self._weights[w] for w in (matrix, *bias))  # type: ignore[index]
        params = (self._param(weight), weight.transposed, *map(self._param, biases))
        return self._step(MATMUL, (self._value(rows), *params))  # type: ignore[arg-type]
