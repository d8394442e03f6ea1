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

OLDEST = "3.7.1"
"""What comes with CUDA builds of torch 2.13; the newest is the one that is installed."""


def folder_of_oldest(base: Path) -> Path:
    """Install the oldest Triton into a folder of its own, unless it is there.

    Raises:
        CalledProcessError: pip cannot install it; its message is on standard error.
    """
    folder = base / f"triton-{OLDEST}"
    if not (folder / "triton").exists():
        asked = [f"triton=={OLDEST}", "--no-deps", "--target", str(folder), "--quiet"]
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
    """Compile with the oldest and the newest Triton.

    Args:
        base: where the oldest is installed.
        targets: what to compile for.
        workers: how many processes run at once.
        say: is told what is done.
    """
    say(f"compiling for {len(targets)} targets with triton {OLDEST}")
    results = [compile_with(folder_of_oldest(base), targets, workers)]
    if version("triton") != OLDEST:
        say(f"compiling for {len(targets)} targets with triton {version('triton')}")
        results.append(compile_with(None, targets, workers))
    return results
