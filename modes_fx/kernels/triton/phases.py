"""Write one element-wise phase of a plan as the lines of a Triton function.

A phase computes one column of its result from columns of what it reads, so it is written from the
result backwards: a slice only changes which column is asked for, as a start and a step. What is
asked for at the end are columns of products (the streams), of parameters, or of ``x``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modes_fx.kernels.epilogue import MATMUL, SLICE
from modes_fx.kernels.triton.operations import check_known, write
from modes_fx.kernels.triton.plan import Plan, UnsupportedBodyError


class Columns(NamedTuple):
    """Which column of a value is meant where column j of the phase's result is computed."""

    start: int
    step: int


class Stream(NamedTuple):
    """The columns of an up-product that one accumulator holds: ``start + stride * j``."""

    product: str
    start: int
    stride: int


SAME = Columns(0, 1)


@dataclass
class Phase:
    """The function of one phase.

    Attributes:
        streams: what its accumulators hold, in the order of its arguments.
        vectors: the parameters it loads from, in the order of the tuple it is given.
        lines: its statements.
        result: the name, or constant, of its result.
    """

    streams: list[Stream] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    result: str = ""

    @property
    def is_identity(self) -> bool:
        """Whether nothing is computed."""
        return not self.lines


def write_phase(plan: Plan, result: str, inputs: Mapping[str, str]) -> Phase:
    """Write the phase that computes ``result``.

    Args:
        plan: the plan.
        result: the value to compute.
        inputs: values that the kernel gives the phase, by name, with the name of the argument that
            holds the columns themselves; ``""`` for those that are read as streams.

    Raises:
        UnsupportedBodyError: it reads something else, or has an operation without an expression.
    """
    return _Writer(plan, inputs).write(result)


class _Writer:
    def __init__(self, plan: Plan, inputs: Mapping[str, str]) -> None:
        self._plan, self._inputs = plan, inputs
        self._phase = Phase()
        self._known: dict[tuple[str, Columns], str] = {}
        self._biases = {
            product.value: product.bias
            for product in (*plan.ups, plan.down)
            if product.bias is not None
        }

    def write(self, result: str) -> Phase:
        self._phase.result = self._value(result, SAME)
        return self._phase

    def _value(self, name: str, columns: Columns) -> str:
        key = (name, columns)
        if key not in self._known:
            self._known[key] = self._compute(name, columns)
        return self._known[key]

    def _compute(self, name: str, columns: Columns) -> str:
        if name == "w":
            return "w"
        if name in self._inputs:
            return self._input(name, columns)
        if name.startswith("p"):
            return self._vector(int(name[1:]), columns)
        if not name.startswith("%"):
            raise UnsupportedBodyError(f"it reads {name} where the kernels do not have it")
        step = self._plan.body.steps[int(name[1:])]
        if step.op == MATMUL:
            raise UnsupportedBodyError("it reads a product where the kernels do not have it")
        if step.op == SLICE:
            rows, start, _, stride = step.args
            part = Columns(start + stride * columns.start, stride * columns.step)
            return self._value(rows, part)
        check_known(step.op)
        width = self._plan.values[name].width
        args = tuple(self._operand(arg, width, columns) for arg in step.args)
        return self._assign(write(step.op, args, dict(step.kwargs)))

    def _operand(self, arg: Any, width: int, columns: Columns) -> Any:
        if not isinstance(arg, str):
            return arg
        broadcast = self._width(arg) == 1 and width != 1
        return self._value(arg, Columns(0, 0) if broadcast else columns)

    def _width(self, name: str) -> int:
        if not name.startswith("p"):
            return self._plan.values[name].width
        shape = self._plan.params[int(name[1:])].shape
        return shape[-1] if shape else 1

    def _input(self, name: str, columns: Columns) -> str:
        if columns.step == 0:
            raise UnsupportedBodyError("it repeats a single column of a product")
        argument = self._inputs[name]
        if not argument:
            stream = Stream(name, columns.start, columns.step)
            if stream not in self._phase.streams:
                self._phase.streams.append(stream)
            argument = f"s{self._phase.streams.index(stream)}"
        elif columns != SAME:
            raise UnsupportedBodyError(f"it takes a part of the columns of {argument}")
        if name not in self._biases:
            return argument
        return self._assign(f"{argument} + {self._vector(self._biases[name], columns)}")

    def _vector(self, param: int, columns: Columns) -> str:
        shape = self._plan.params[param].shape
        per_expert = self._plan.body.per_expert[param]
        rank = 2 if per_expert else 1
        if len(shape) > rank and set(shape[:-rank]) == {1} and not per_expert:
            shape = shape[-1:]
        if len(shape) > rank or (per_expert and len(shape) != rank):
            raise UnsupportedBodyError(f"p{param} {list(shape)} is not one row for each expert")
        if param not in self._phase.vectors:
            self._phase.vectors.append(param)
        width = shape[-1] if shape else 1
        base = f"vectors[{self._phase.vectors.index(param)}]"
        base += f" + expert * {width}" if per_expert else ""
        if columns.step == 0 or width == 1:
            return self._assign(f"tl.load({base} + {columns.start}).to(tl.float32)")
        place = "columns" if columns.step == 1 else f"{columns.step} * columns"
        place += f" + {columns.start}" if columns.start else ""
        load = f"tl.load({base} + {place}, mask=inside, other=0.0)"
        return self._assign(f"{load}.to(tl.float32)")

    def _assign(self, expression: str) -> str:
        name = f"t{len(self._phase.lines)}"
        self._phase.lines.append(f"{name} = {expression}")
        return name
