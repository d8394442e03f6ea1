"""Compile the kernels for a GPU that is not there, and read what a device would load."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from pydantic import BaseModel

from modes_fx.kernels.triton.calls import Call
from modes_fx.kernels.triton.offline import compile_offline, gpu_target

MULTIPROCESSORS = {
    "sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304, "gfx950": 256,
}  # fmt: skip
"""Of one product with each target that is compiled for; it sets the grid, not the code."""

TARGETS = tuple(MULTIPROCESSORS)

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


def compile_call(call: Call, target: str) -> Compiled:
    """Compile a recorded launch and read what came of it; inside ``offline.compiling_for``."""
    return inspect(compile_offline(call), gpu_target(target).backend)


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
