"""CPU kernels: C++ that is generated for a body, built at first use and kept.

``library.cpp`` takes over the ops ``gate`` and ``experts`` when it is loaded. ``experts.cpp`` has
the products, for one instruction set. A kernel is the elementwise code of one body on top of both,
and registers itself for that body and dtype. The steps of a call are in ``experts.h``.
"""

import ctypes
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from modes_fx.kernels.cpu.build import SOURCES, BuildError, build_shared
from modes_fx.kernels.cpu.isa import DEFAULT, Isa, detect_isa
from modes_fx.kernels.cpu.plan import UnfusableError
from modes_fx.kernels.cpu.source import ELEMENTS, RANKS, kernel_source, parameter_kinds
from modes_fx.kernels.epilogue import Body

# What is cached here is asked for once in a process, and so is warned of once.


@cache
def load_library() -> bool:
    """Load the C++ ops, building them where they are not built yet.

    Returns:
        Whether they are there; a warning has said why, where they are not.
    """
    try:
        load_shared(build_library())
    except (BuildError, OSError) as error:
        _warn(f"the CPU kernels cannot be used: {error}")
        return False
    return True


def load_kernel(body: str, dtype: torch.dtype, params: Sequence[Tensor]) -> bool:
    """Load the kernel of a body, building it where it is not built yet.

    Args:
        body: what an expert computes, as JSON.
        dtype: of the hidden states.
        params: the body's parameters.

    Returns:
        Whether a kernel is there that can read these parameters; a warning has said why, where
        there is none.
    """
    layouts = tuple((param.dtype, param.dim(), param.is_contiguous()) for param in params)
    return _load_kernel(body, dtype, layouts)


Layouts = tuple[tuple[torch.dtype, int, bool], ...]
"""Of each parameter: dtype, dimensions, and whether it is contiguous."""


@cache
def _load_kernel(body: str, dtype: torch.dtype, layouts: Layouts) -> bool:
    experts = f"experts that compute {Body.from_json(body).summary()}"
    name = str(dtype).removeprefix("torch.")
    if name not in ELEMENTS:
        _warn(f"{experts} are in {name}, and CPU kernels are for {' and '.join(ELEMENTS)}")
        return False
    if any(other not in (dtype, torch.int8) or not contiguous for other, _, contiguous in layouts):
        _warn(
            f"{experts} have weights that are not contiguous, or neither int8 nor in {name} as the "
            "tokens are"
        )
        return False
    try:
        kinds = parameter_kinds(Body.from_json(body))
        for kind, (_, rank, _) in zip(kinds, layouts, strict=True):
            if rank not in RANKS[kind]:
                raise UnfusableError(f"a parameter has {rank} dimensions")
        _check_integers(kinds, layouts)
        load_shared(build_kernel(Body.from_json(body), name, detect_isa()))
    except UnfusableError as error:
        _warn(f"{experts} have no fused CPU kernel: {error}")
        return False
    except (BuildError, OSError) as error:
        _warn(f"the CPU kernel of {experts} cannot be used: {error}")
        return False
    return True


def _check_integers(kinds: str, layouts: Layouts) -> None:
    """Check that the matrices are all int8 ``[E, N, K]``, or that nothing is int8."""
    integers = [
        kind + str(rank)
        for kind, (dtype, rank, _) in zip(kinds, layouts, strict=True)
        if dtype == torch.int8
    ]
    matrices = sum(kind in "MR" for kind in kinds)
    if integers and integers != ["R3"] * matrices:
        raise UnfusableError("of its weights some are int8, but not all matrices, as [E, N, K]")


def build_library() -> Path:
    """Build the ops' library; it runs on every processor of this architecture.

    Raises:
        BuildError: see :func:`modes_fx.kernels.cpu.build.build_shared`.
    """
    source = (SOURCES / "library.cpp").read_text(encoding="utf-8")
    return build_shared("library", source, DEFAULT)


def build_kernel(body: Body, dtype: str, isa: Isa) -> Path:
    """Build the kernel of a body.

    Args:
        body: what one expert computes.
        dtype: of the model: ``float32`` or ``bfloat16``.
        isa: the instruction set to build for.

    Raises:
        UnfusableError: the body has no fused kernel.
        BuildError: see :func:`modes_fx.kernels.cpu.build.build_shared`.
    """
    return kernel_libraries(body, dtype, isa)[-1]


def kernel_libraries(body: Body, dtype: str, isa: Isa) -> list[Path]:
    """Build the kernel of a body and all that it needs; what is loaded first comes first.

    Raises:
        UnfusableError: the body has no fused kernel.
        BuildError: see :func:`modes_fx.kernels.cpu.build.build_shared`.
    """
    library = build_library()
    experts = build_shared("experts", (SOURCES / "experts.cpp").read_text(encoding="utf-8"), isa)
    kernel = build_shared("body", kernel_source(body, dtype, isa.name), isa, [library, experts])
    return [library, experts, kernel]


def load_shared(library: Path) -> None:
    """Load a library of ops or a kernel, unless one of its name is loaded.

    Their names hold a hash of what they were built from; a copy of the ops would register them
    once more.
    """
    try:
        ctypes.CDLL(library.name, mode=os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _warn(message: str) -> None:
    warnings.warn(f"{message}. PyTorch's own products run instead, which is slower", stacklevel=4)
