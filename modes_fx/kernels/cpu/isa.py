"""The instruction sets that kernels are built for."""

import os
import platform
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    Attributes:
        name: what it is called in file names and manifests.
        flags: what the compiler needs to use it.
        capability: what ATen's vectors call it.
        brgemm: whether many rows are multiplied by ATen's ``brgemm``, which uses the matrix unit.
    """

    name: str
    flags: tuple[str, ...]
    capability: str
    brgemm: bool = False

    @property
    def defines(self) -> tuple[str, ...]:
        """Return the macros that choose ATen's vectors and name what is built."""
        chosen = f"-DMODES_FX_ISA={self.name}"
        return (
            chosen,
            f"-DCPU_CAPABILITY={self.capability}",
            f"-DCPU_CAPABILITY_{self.capability}",
            f"-DMODES_FX_BRGEMM={int(self.brgemm)}",
        )


_AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c")

_AVX512_BF16 = (*_AVX512, "-mavx512bf16")

AMX_BF16 = Isa("amx_bf16", _AVX512_BF16, "AVX512", brgemm=True)
AVX512_BF16 = Isa("avx512_bf16", _AVX512_BF16, "AVX512")
AVX512 = Isa("avx512", _AVX512, "AVX512")
AVX2 = Isa("avx2", ("-mavx2", "-mfma", "-mf16c"), "AVX2")
DEFAULT = Isa("default", (), "DEFAULT")

ISAS = (AMX_BF16, AVX512_BF16, AVX512, AVX2, DEFAULT)
"""From the fastest to the one that every processor has."""


def detect_isa() -> Isa:
    """Return the instruction set to use: the fastest one of this processor.

    The variable MODES_FX_ISA names another one. ATEN_CPU_CAPABILITY (``avx2``, ``default``) limits
    it, as it limits ATen's own.

    Raises:
        ValueError: MODES_FX_ISA names none of :data:`ISAS`.
    """
    if chosen := os.environ.get("MODES_FX_ISA"):
        by_name = {isa.name: isa for isa in ISAS}
        if chosen not in by_name:
            raise ValueError(
                f"MODES_FX_ISA is {chosen!r}; kernels are built for {', '.join(by_name)}"
            )
        return by_name[chosen]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        return AMX_BF16 if torch.cpu._is_amx_tile_supported() else AVX512_BF16
    by_capability = {"AVX512": AVX512, "AVX2": AVX2}
    return by_capability.get(capability, DEFAULT) if _is_x86() else DEFAULT


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
