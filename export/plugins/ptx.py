"""A plugin's kernel as PTX, compiled without a GPU.

Triton appends pointers to scratch memory to a kernel's parameters, which TensorRT would not pass.
These kernels use none, so the parameters are taken out.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

from modes_fx.export.plugins.layer import Plugin
from modes_fx.kernels.triton.offline import compile_offline, compiling_for

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\b[^,]*?(\w+)\s*(?:,|$)")
WARP = 32


@dataclass(frozen=True)
class Code:
    """What TensorRT launches.

    Attributes:
        entry: the kernel's name in the PTX.
        ptx: its code, whose parameters are the pointers of the inputs and the output.
        threads: of a program.
        shared_bytes: of a program.
    """

    entry: str
    ptx: str
    threads: int
    shared_bytes: int


def compile_plugin(plugin: Plugin, inputs: tuple[torch.Tensor, ...], target: str) -> Code:
    """Compile a plugin's kernel for a target such as ``sm_89``.

    Args:
        plugin: of a layer.
        inputs: tensors as it takes them, of which only dtypes and shapes are read.
        target: of the GPU.

    Raises:
        RuntimeError: Triton interprets kernels here, or gave the kernel parameters that it reads
            and TensorRT does not know of.
    """
    described = [of_one_token(value) for value in inputs]
    with compiling_for(target):
        kernel: Any = compile_offline(plugin.call(*described))
    pointers = len(inputs) + 1
    metadata = kernel.metadata
    entry, ptx = keep_parameters(kernel.asm["ptx"], pointers)
    return Code(entry, ptx, metadata.num_warps * WARP, metadata.shared)


def of_one_token(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor without data, and with 1 for the sizes that a program leaves open."""
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def keep_parameters(ptx: str, count: int) -> tuple[str, str]:
    """Return a kernel's name, and its code with the first parameters alone.

    Raises:
        RuntimeError: there are fewer, or one of the others is read.
    """
    found = _ENTRY.search(ptx)
    names = _PARAMETER.findall(found[2]) if found else []
    if found is None or len(names) < count:
        raise RuntimeError(f"the kernel has {len(names)} parameters in PTX, not {count}")
    rest = ptx[found.end() :]
    if read := [name for name in names[count:] if re.search(rf"\b{name}\b", rest)]:
        raise RuntimeError(
            f"Triton gave the kernel the parameter {read[0]}, which TensorRT would not pass: "
            "please report the version of Triton"
        )
    listed = found[2].split(",")[:count]
    return found[1], ptx[: found.start(2)] + ",".join(listed) + "\n" + ptx[found.end(2) :]
