"""Builds C++ into shared objects that are kept from one process to the next."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils import cpp_extension

from modes_fx.kernels.cpu.isa import Isa

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-fno-strict-aliasing", "-DNDEBUG")
"""Packing reads and writes pairs of values as one; ATen's vectors do the same."""

LOCK_SECONDS = 600


class BuildError(RuntimeError):
    """A kernel that cannot be built here, with what is missing and how to get it."""


def build_shared(name: str, source: str, isa: Isa, links: Sequence[Path] = ()) -> Path:
    """Compile one translation unit, unless that was done before.

    Several processes may ask for the same at once: one builds, the others wait for it.

    Args:
        name: what the file is called, before its hash.
        source: the C++ text; it may include the headers of this folder.
        isa: what to compile for.
        links: shared objects that it is linked with.

    Returns:
        The shared object, in inductor's cache (``TORCHINDUCTOR_CACHE_DIR``).

    Raises:
        BuildError: there is no C++ compiler, or it failed.
    """
    compiler = _compiler()
    compiling = [*FLAGS, *isa.flags, *isa.defines, *_include_flags()]
    beside = [
        f"-Wl,-rpath,{folder}"
        for folder in ("$ORIGIN", *dict.fromkeys(link.parent for link in links))
    ]
    linking = [*map(str, links), *beside, *_link_flags()]
    parts = [source, _headers(), torch.__version__, _version(compiler), *compiling, *linking]
    recipe = "\0".join(parts)
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder = Path(cache_dir()) / "modes_fx" / isa.name
    built = folder / f"{name}_{key}.so"
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{built}.lock", timeout=LOCK_SECONDS):
        if not built.exists():
            text = built.with_suffix(".cpp")
            text.write_text(source, encoding="utf-8")
            half_built = built.with_suffix(f".{os.getpid()}")
            # A name of its own, so that a copy elsewhere is found once it is loaded.
            named = f"-Wl,-soname,{built.name}"
            _run([compiler, *compiling, str(text), *linking, named], half_built)
            half_built.replace(built)
    return built


def _run(command: Sequence[str], output: Path) -> None:
    done = subprocess.run(
        [*command, "-o", str(output)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        output.unlink(missing_ok=True)
        raise BuildError(
            f"the C++ compiler failed with exit code {done.returncode}: {' '.join(command)}\n"
            f"{done.stderr[-4000:]}"
        )


@cache
def _compiler() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except (InvalidCxxCompiler, CppCompileError, RuntimeError) as error:
        raise BuildError(
            "there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++; Fedora: "
            "dnf install gcc-c++) or name it in the variable CXX"
        ) from error


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@cache
def _headers() -> str:
    """Return all headers of this folder: a kernel built with others must not be used."""
    return "\0".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.h")))


@cache
def _include_flags() -> tuple[str, ...]:
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return (f"-I{SOURCES}", *(f"-I{path}" for path in cpp_extension.include_paths()), abi)


@cache
def _link_flags() -> tuple[str, ...]:
    paths = cpp_extension.library_paths()
    search = [f"-L{path}" for path in paths] + [f"-Wl,-rpath,{path}" for path in paths]
    return (*search, "-lc10", "-ltorch_cpu")
