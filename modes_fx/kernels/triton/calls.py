"""The one place where a kernel is launched, so that launches can be counted or compiled instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from modes_fx.kernels.triton.limits import DeviceLimitError
from modes_fx.kernels.triton.plan import UnsupportedBodyError


class Call(NamedTuple):
    """One launch of a kernel, as Triton is asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.fn.__name__)


Observer = Callable[[Call], None]


def _run(call: Call) -> None:
    first = call.args[0]  # of every kernel a tensor of the device it runs on
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        try:
            call.kernel[call.grid](*call.args, **call.options)
        except OutOfResources as error:
            raise DeviceLimitError(f"{call.name} does not fit the device: {error}") from error
        except CompilationError as error:
            raise UnsupportedBodyError(f"{call.name} does not compile: {error}") from error


_observer: Observer = _run


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel, or hand the launch to whoever observes.

    Raises:
        DeviceLimitError: the kernel needs more of the device than was predicted and there is.
        UnsupportedBodyError: Triton cannot compile it for the device.
    """
    _observer(Call(kernel, grid, args, options))


@contextmanager
def recorded(run: bool = True) -> Iterator[list[Call]]:
    """Collect all launches of this process, and run them or not."""
    global _observer
    calls: list[Call] = []
    before = _observer

    def observe(call: Call) -> None:
        calls.append(call)
        if run:
            before(call)

    _observer = observe
    try:
        yield calls
    finally:
        _observer = before
