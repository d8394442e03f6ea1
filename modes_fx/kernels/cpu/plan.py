"""How a body is split between the parts of the C++ kernel, or why it cannot be.

The kernel runs two products per expert, so a body fits if it is::

    rows = prologue(x, w)                    what the up projection multiplies
    s0, s1 = columns of rows @ up            one or two *streams* of I columns
    h = middle(s0, s1, w, vectors)           element by element
    y = tail(h @ down, w, vectors)           element by element

Operations between a product and the slice of it that a stream is (such as a bias of all columns)
commute with the slice, so every value is asked for *as a view* of its columns: every step-th one
from a start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modes_fx.kernels.cpu.printer import OPERATIONS, Printer
from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step


class UnfusableError(Exception):
    """Why a body has no fused kernel, in words."""


class View(NamedTuple):
    """Columns of a value: ``start``, ``start + step``, ..."""

    start: int = 0
    step: int = 1

    def of(self, start: int, step: int) -> "View":
        """Return the view of these columns of a slice."""
        return View(start + step * self.start, step * self.step)


class Stream(NamedTuple):
    """Columns of an up projection that the middle reads."""

    param: int
    transposed: bool
    view: View


class Vector(NamedTuple):
    """Columns of a vector parameter, per expert or shared."""

    param: int
    view: View


@dataclass(frozen=True)
class Part:
    """One elementwise part of a body, as C++.

    Attributes:
        lines: statements that define the values.
        result: the expression of its result.
        vectors: the vector parameters that it reads, as ``v[0]``, ``v[1]``, ...
    """

    lines: tuple[str, ...]
    result: str
    vectors: tuple[Vector, ...]


@dataclass(frozen=True)
class Plan:
    """A body as the parts of the kernel.

    Attributes:
        prologue: computes a row of the up projections' input from ``x``; None where that is x.
        streams: in the order in which the middle names them, ``s[0]``, ``s[1]``.
        middle: computes what the down projection reads.
        down: its parameter.
        down_transposed: whether that is ``[E, N, K]``.
        tail: computes the result from ``y``.
    """

    prologue: Part | None
    streams: tuple[Stream, ...]
    middle: Part
    down: int
    down_transposed: bool
    tail: Part

    @property
    def layout(self) -> str | None:
        """How the columns of an up tile are read: ``one``, ``apart``, ``interleaved`` or none."""
        views = sorted(stream.view for stream in self.streams)
        same = len({stream.param for stream in self.streams}) == 1
        if views == [View(0, 1)] and same:
            return "one"
        if len(views) == 2 and same and views == [View(0, 2), View(1, 2)]:
            return "interleaved"
        if len(views) == 2 and all(view.step == 1 for view in views):
            return "apart"
        return None


def plan(body: Body) -> Plan:
    """Split a body.

    Raises:
        UnfusableError: it does not have the form above, or has an operation without a C++ form.
    """
    matmuls = [i for i, step in enumerate(body.steps) if step.op == MATMUL]
    if len(matmuls) < 2:
        raise UnfusableError(f"it has {len(matmuls)} matrix products, not an up and a down one")
    *ups, down = matmuls
    _check_depth(body, matmuls)
    inputs = {body.steps[up].args[0] for up in ups}
    if len(inputs) > 1:
        raise UnfusableError("its up projections multiply different rows")
    rows, param, transposed = _product(body.steps[down])
    between = _Reader(body, ups=ups)
    found = Plan(
        prologue=None if inputs == {"x"} else _Reader(body, prologue=True).part(inputs.pop()),
        middle=between.part(rows),
        streams=tuple(between.streams),
        down=param,
        down_transposed=transposed,
        tail=_Reader(body, down=down).part(f"%{len(body.steps) - 1}"),
    )
    if found.layout is None:
        views = ", ".join(f"p{s.param}[{s.view.start}::{s.view.step}]" for s in found.streams)
        raise UnfusableError(f"its middle reads the columns {views} of the up projections")
    return found


def _check_depth(body: Body, matmuls: list[int]) -> None:
    """Check that the last product reads the others, that these read none, and that it is used."""
    read: dict[str, set[int]] = {}
    for i, step in enumerate(body.steps):
        sources = [read.get(arg, set()) for arg in step.args if isinstance(arg, str)]
        read[f"%{i}"] = set().union(*sources) | ({i} if step.op == MATMUL else set())
    *ups, down = matmuls
    if any(read[f"%{up}"] != {up} for up in ups):
        raise UnfusableError("it has more than two products one after another")
    if read[f"%{down}"] != set(matmuls) or read[f"%{len(body.steps) - 1}"] != set(matmuls):
        raise UnfusableError("its result does not go through all of its products")


def _product(step: Step) -> tuple[str, int, bool]:
    rows, param, transposed = step.args[:3]
    return rows, int(param[1:]), bool(transposed)


class _Reader:
    """Writes the elementwise code of one part, from its inputs to its result.

    Attributes:
        streams: the columns of up projections read so far.
    """

    def __init__(
        self, body: Body, *, prologue: bool = False, ups: Sequence[int] = (), down: int = -1
    ) -> None:
        """The part begins at ``x``, at the products ``ups``, or at the product ``down``."""
        self.streams: list[Stream] = []
        self._body, self._prologue, self._ups, self._down = body, prologue, ups, down
        self._vectors: list[Vector] = []
        self._printer = Printer()
        self._names: dict[tuple[str, View], str] = {}

    def part(self, value: str) -> Part:
        """Return the code that computes a value of the body."""
        result = self._read(value, View())
        return Part(tuple(self._printer.lines), result, tuple(self._vectors))

    def _read(self, value: Any, view: View) -> str:
        if not isinstance(value, str):
            return self._printer.constant(value)
        if (value, view) not in self._names:
            self._names[value, view] = self._write(value, view)
        return self._names[value, view]

    def _write(self, value: str, view: View) -> str:
        if value == "w":
            return "w"
        if value == "x":
            return self._input(view)
        if value.startswith("p"):
            return self._vector(value, view)
        position = int(value[1:])
        step = self._body.steps[position]
        if step.op == MATMUL:
            return self._of_product(position, step, view)
        if step.op == SLICE:
            rows, start, _, stride = step.args
            return self._read(rows, view.of(start, stride))
        if step.op not in OPERATIONS:
            raise UnfusableError(f"{step.op} has no vectorised form")
        args = [self._read(arg, view) for arg in step.args]
        return self._printer.operation(step.op, args, dict(step.kwargs))

    def _input(self, view: View) -> str:
        if not self._prologue:
            raise UnfusableError("it reads x again after its first product")
        if view != View():
            raise UnfusableError("it reads a part of x")
        return "x"

    def _of_product(self, position: int, step: Step, view: View) -> str:
        if position in self._ups:
            _, param, transposed = _product(step)
            stream = Stream(param, transposed, view)
            if stream not in self.streams:
                self.streams.append(stream)
            name = f"s[{self.streams.index(stream)}]"
        elif position == self._down and view == View():
            name = "y"
        else:
            raise UnfusableError("a product is read in more than one place")
        if not step.args[3:]:
            return name
        bias = self._vector(step.args[3], view)
        return self._printer.operation("aten.add.Tensor", [name, bias], {})

    def _vector(self, value: str, view: View) -> str:
        if self._prologue:
            raise UnfusableError("a parameter changes x before the up projection")
        vector = Vector(int(value[1:]), view)
        if vector not in self._vectors:
            self._vectors.append(vector)
        return f"v[{self._vectors.index(vector)}]"
