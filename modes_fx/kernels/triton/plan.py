"""A body taken apart into what two GEMM kernels can run: the plan.

``x -> prologue -> up-products -> streams -> middle -> down-product -> tail``. A *stream* is a
strided part of the columns of an up-product; the middle computes one column of the down-product's
input from the same column of each stream. Everything but the products is element-wise.

H hidden size, I intermediate size, N columns of an up-product, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modes_fx.kernels.epilogue import MATMUL, Body, Step


class UnsupportedBodyError(ValueError):
    """Why a body cannot run in the Triton kernels, in words."""


@dataclass(frozen=True)
class Product:
    """One GEMM of a body.

    Attributes:
        value: the name of its result.
        rows: the name of the value that is multiplied.
        weight: which parameter holds its matrices, ``[E, ., .]``.
        transposed: whether rows are multiplied by the transpose of a matrix of ``weight``.
        bias: which parameter is added, ``[E, N]``; None without one.
    """

    value: str
    rows: str
    weight: int
    transposed: bool
    bias: int | None


@dataclass(frozen=True)
class ParameterFacts:
    """What a plan needs to know of one parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(params: Sequence[torch.Tensor]) -> tuple["ParameterFacts", ...]:
        """Describe every parameter of a region."""
        return tuple(ParameterFacts(tuple(param.shape), param.dtype) for param in params)


@dataclass(frozen=True)
class Value:
    """The columns and the dtype of one row of a value of the body."""

    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """A body in the form the kernels have.

    Attributes:
        body: the body itself.
        params: its parameters' facts.
        ups: the products whose rows are the prologue's result.
        down: the product whose rows are the middle's result.
        values: every value of the body by name, ``x`` and ``w`` included.
    """

    body: Body
    params: tuple[ParameterFacts, ...]
    ups: tuple[Product, ...]
    down: Product
    values: dict[str, Value]

    @property
    def result(self) -> str:
        """The name of the body's result."""
        return f"%{len(self.body.steps) - 1}"

    @property
    def hidden(self) -> int:
        """H: how wide the rows are that experts take."""
        return self.values[self.ups[0].rows].width

    @property
    def intermediate(self) -> int:
        """I: how wide the rows between the GEMMs are."""
        return self.values[self.down.rows].width

    @property
    def output(self) -> int:
        """How wide the result is: H for every region, as experts give what they take."""
        return self.values[self.down.value].width


def make_plan(
    body: Body, params: Sequence[ParameterFacts], x_dtype: torch.dtype, w_dtype: torch.dtype, H: int
) -> Plan:
    """Take a body apart.

    Args:
        body: the body.
        params: the facts of its parameters.
        x_dtype: of the hidden states.
        w_dtype: of the combine weights.
        H: how wide the hidden states are.

    Returns:
        The plan.

    Raises:
        UnsupportedBodyError: it is not two GEMMs, one after the other, with element-wise
            operations around them.
    """
    products = [_product(f"%{i}", step) for i, step in enumerate(body.steps) if step.op == MATMUL]
    if len(products) < 2:
        raise UnsupportedBodyError(f"it has {len(products)} product, where two stages are needed")
    *ups, down = products
    if {up.rows for up in ups} != {ups[0].rows}:
        raise UnsupportedBodyError("its up-products do not multiply the same rows")
    if any(_reads(body, ups[0].rows, product.value) for product in products):
        raise UnsupportedBodyError("it has more than two GEMMs after one another")
    if not all(_reads(body, down.rows, up.value) for up in ups):
        raise UnsupportedBodyError("its last product does not read all of the others")
    if not _reads(body, f"%{len(body.steps) - 1}", down.value):
        raise UnsupportedBodyError("its result does not read its last product")
    values = _values(body, tuple(params), x_dtype, w_dtype, H)
    return Plan(body, tuple(params), tuple(ups), down, values)


def _product(value: str, step: Step) -> Product:
    rows, weight, transposed, *bias = step.args
    return Product(value, rows, int(weight[1:]), transposed, int(bias[0][1:]) if bias else None)


def _reads(body: Body, value: str, source: str) -> bool:
    """Whether a value is, or is computed from, a source."""
    if value == source:
        return True
    if not value.startswith("%"):
        return False
    args = body.steps[int(value[1:])].args
    return any(isinstance(arg, str) and _reads(body, arg, source) for arg in args)


def _values(
    body: Body,
    params: tuple[ParameterFacts, ...],
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    H: int,
) -> dict[str, Value]:
    """Ask torch itself, on tensors without data, how wide every value is and of which dtype."""
    rows = 2  # a size that no parameter broadcasts to by accident of being 1
    x = torch.empty(rows, H, dtype=x_dtype, device="meta")
    w = torch.empty(rows, 1, dtype=w_dtype, device="meta")
    expert = torch.empty(rows, dtype=torch.long, device="meta")
    empty = [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in params]
    values = {"x": Value(H, x_dtype), "w": Value(1, w_dtype)}
    for i in range(len(body.steps)):
        so_far = Body(body.per_expert, body.steps[: i + 1])
        result = so_far.run(x, w, empty, expert, _meta_matmul)
        if result.dim() != 2:
            raise UnsupportedBodyError(f"step {i} ({body.steps[i].op}) has {result.dim()} dims")
        values[f"%{i}"] = Value(result.shape[1], result.dtype)
    return values


def _meta_matmul(
    rows: torch.Tensor, weight: torch.Tensor, transposed: bool, bias: torch.Tensor | None
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1 if transposed else 2])
