"""Run the compilation with the oldest and the newest Triton that are supported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from modes_fx.bench.gpu.compilation import Compilation

SUPPORTED = ("3.7.1", "3.9.0")
"""The oldest, which builds of torch 2.13 for CUDA come with, and the newest."""


def folder_of(triton: str, base: Path) -> Path | None:
    """Return where a Triton is installed, after installing it into a folder of its own if need be.

    Args:
        triton: its version.
        base: where folders are made.

    Returns:
        The folder; None for the Triton that this process would import.

    Raises:
        CalledProcessError: pip cannot install it; its message is on standard error.
    """
    if version("triton") == triton:
        return None
    folder = base / f"triton-{triton}"
    if not (folder / "triton").exists():
        asked = [f"triton=={triton}", "--no-deps", "--target", str(folder), "--quiet"]
        subprocess.run([sys.executable, "-m", "pip", "install", *asked], check=True)
    return folder


def compile_with(folder: Path | None, targets: list[str], workers: int) -> Compilation:
    """Compile everything in processes of their own, one for each target.

    Args:
        folder: where another Triton is installed; None for the one that is installed already.
        targets: what to compile for.
        workers: how many processes run at once.

    Raises:
        RuntimeError: a process failed; the message holds what it said.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as pool:

        def one(target: str) -> Compilation:
            out = Path(scratch) / f"{target}.json"
            command = [sys.executable, "-m", "modes_fx.bench.gpu.compilation", str(out), target]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"compiling for {target} failed:\n{done.stderr[-4000:]}")
            return Compilation.model_validate(json.loads(out.read_text(encoding="utf-8")))

        return merged(list(pool.map(one, targets)))


def merged(parts: list[Compilation]) -> Compilation:
    """Join what one Triton compiled for several targets.

    Raises:
        ValueError: it was not one Triton.
    """
    versions = {part.triton for part in parts}
    if len(versions) != 1:
        raise ValueError(f"parts of different Tritons: {', '.join(sorted(versions))}")
    entries = [entry for part in parts for entry in part.entries]
    return Compilation(triton=versions.pop(), entries=entries)


def compile_all_versions(
    base: Path, targets: list[str], workers: int, say: Callable[[str], None]
) -> list[Compilation]:
    """Compile with every supported end of the range of Triton.

    Args:
        base: where versions that are not installed are put.
        targets: what to compile for.
        workers: how many processes run at once.
        say: is told what is done.
    """
    results = []
    for triton in SUPPORTED:
        say(f"compiling for {len(targets)} targets with triton {triton}")
        results.append(compile_with(folder_of(triton, base), targets, workers))
    return results
