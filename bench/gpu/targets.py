"""Compile the kernels for a GPU that is not there, exactly as they would be launched.

Triton asks its driver for the target and gets it from one without a device; tensors without data
stand for the arguments. What comes out is what a device would load.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from pydantic import BaseModel
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from modes_fx.kernels.triton.calls import Call

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
MULTIPROCESSORS = {
    "sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304, "gfx950": 256,
}  # fmt: skip
"""Of one product with each target; it sets the grid, not the code."""

_TENSOR_CORES = {
    "cuda": re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma"),
    "hip": re.compile(r"v_mfma_"),
}
_WIDE_LOADS = {
    "cuda": re.compile(
        r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|ld\.global\S*\.v8|cp\.async"
    ),
    "hip": re.compile(r"(?:global|buffer)_load_dwordx4"),
}


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


class Compiled(BaseModel):
    """What the compiler made of one kernel.

    Attributes:
        registers: 32-bit vector registers of a thread.
        spilled: bytes of a thread that did not fit into registers.
        shared: bytes of shared memory of a program.
        tensor_cores: how many tensor-core instructions there are.
        wide_loads: how many loads of 128 bits from global memory.
        instructions: how many there are in all.
    """

    registers: int
    spilled: int
    shared: int
    tensor_cores: int
    wide_loads: int
    instructions: int


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Let Triton compile for a target.

    Raises:
        RuntimeError: kernels were imported to be interpreted, so they cannot be compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    driver.set_active(_NoDevice(TARGETS[target]))
    try:
        yield
    finally:
        driver._active = None  # reset_active() would look for a device


def compile_call(call: Call, target: str) -> Compiled:
    """Compile a recorded launch and read what came of it; inside :func:`compiling_for`."""
    kernel = call.kernel.warmup(*call.args, grid=call.grid, **call.options)
    return inspect(kernel, TARGETS[target].backend)


def inspect(kernel: Any, backend: str) -> Compiled:
    """Read what a compiled kernel needs and uses."""
    text = kernel.asm["ptx" if backend == "cuda" else "amdgcn"]
    return Compiled(
        shared=kernel.metadata.shared,
        tensor_cores=len(_TENSOR_CORES[backend].findall(text)),
        wide_loads=len(_WIDE_LOADS[backend].findall(text)),
        **(_read_cubin(kernel.asm["cubin"]) if backend == "cuda" else _read_amdgcn(text)),
    )


def _read_cubin(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)", code, re.MULTILINE)
    # A stack alone is no spill: a failing assert has one for its call.
    is_spilling = any(operation in ("LDL", "STL") for operation in operations)
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]) if is_spilling else 0,
        "instructions": len(operations),
    }


def _read_amdgcn(text: str) -> dict[str, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return {
        "registers": field("vgpr_count"),
        "spilled": 4 * field("vgpr_spill_count"),
        "instructions": len(re.findall(r"^\t[vsdgb]\w*_\w+", text, re.MULTILINE)),
    }


def _tool(name: str, *args: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout
