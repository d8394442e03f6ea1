"""Compile kernels for a GPU that is not there, exactly as they would be launched.

Triton asks its driver for the target and gets it from one without a device; tensors without data
stand for the arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from modes_fx.kernels.triton.calls import Call


class _NoDevice:
    """A driver that knows a target and nothing else."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> str:
        return str(self._target)  # Triton keeps what it compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def gpu_target(name: str) -> GPUTarget:
    """Return Triton's description of a target: ``sm_90``, ``gfx942``, ..."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Let Triton compile for a target.

    Raises:
        RuntimeError: kernels were imported to be interpreted, so they cannot be compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    driver.set_active(_NoDevice(gpu_target(target)))
    try:
        yield
    finally:
        driver._active = None  # reset_active() would look for a device


def compile_offline(call: Call) -> Any:
    """Compile a recorded launch; inside :func:`compiling_for`.

    Returns:
        Triton's kernel, with its code in ``asm`` and what a launch needs in ``metadata``.
    """
    return call.kernel.warmup(*call.args, grid=call.grid, **call.options)
