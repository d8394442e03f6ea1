"""Print a body as the Triton functions that the kernels take as compile-time arguments.

``triton.jit`` reads a function's source from its file, so the functions are written into one file
for each body, named by the hash of its text, and imported from there.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.triton.phases import Phase, Stream, write_phase
from modes_fx.kernels.triton.plan import ParameterFacts, Plan, UnsupportedBodyError, make_plan

CACHE_VARIABLE = "MODES_FX_CACHE_DIR"
MAX_STREAMS = 2

_HEADER = '''"""Written by modes_fx from the body of an expert: {summary}."""

import triton
import triton.language as tl
'''
_FUNCTION = """

@triton.jit
def {name}({arguments}, w, expert, columns, inside, vectors):
{lines}
    return {result}
"""


@dataclass(frozen=True)
class PrintedBody:
    """A body whose functions can be compiled into the kernels.

    Attributes:
        plan: how the body is taken apart.
        source: the text of the file that holds the functions.
        streams: what the accumulators of the first GEMM hold.
        prologue: the Triton function before it; None where rows are taken as they are.
        middle: the Triton function between the GEMMs.
        tail: the Triton function after the second.
        vectors: the parameters that each of prologue, middle and tail loads from.
    """

    plan: Plan
    source: str
    streams: tuple[Stream, ...]
    prologue: Any
    middle: Any
    tail: Any
    vectors: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=256)
def print_body(
    text: str,
    params: tuple[ParameterFacts, ...],
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    H: int,
) -> PrintedBody:
    """Print a body, given as its JSON; :func:`make_plan` describes the other arguments.

    Raises:
        UnsupportedBodyError: the kernels cannot run it; the message says why.
    """
    body = Body.from_json(text)
    plan = make_plan(body, params, x_dtype, w_dtype, H)
    ups = {up.value: "" for up in plan.ups}
    prologue = write_phase(plan, plan.ups[0].rows, {"x": "x"})
    middle = write_phase(plan, plan.down.rows, ups)
    tail = write_phase(plan, plan.result, {plan.down.value: "y"})
    if len(middle.streams) > MAX_STREAMS:
        raise UnsupportedBodyError(
            f"its middle reads {len(middle.streams)} parts of the up-products, and the kernels "
            f"have {MAX_STREAMS} accumulators"
        )
    accumulators = [f"s{i}" for i in range(len(middle.streams))]
    functions = {
        "prologue": _function("prologue", ["x"], prologue),
        "middle": _function("middle", accumulators, middle),
        "tail": _function("tail", ["y"], tail),
    }
    source = _HEADER.format(summary=body.summary()) + "".join(functions.values())
    module = _import(source)
    return PrintedBody(
        plan,
        source,
        tuple(middle.streams),
        None if prologue.is_identity else module.prologue,
        module.middle,
        module.tail,
        (tuple(prologue.vectors), tuple(middle.vectors), tuple(tail.vectors)),
    )


def cache_folder() -> Path:
    """Return where printed bodies are kept: $MODES_FX_CACHE_DIR, or the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen) / "bodies"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modes_fx" / "bodies"


def _function(name: str, inputs: Sequence[str], phase: Phase) -> str:
    return _FUNCTION.format(
        name=name,
        arguments=", ".join(inputs),
        lines="\n".join(f"    {line}" for line in phase.lines) or "    # nothing is computed here",
        result=phase.result,
    )


def _import(source: str) -> ModuleType:
    """Import a text from a file that holds it, writing the file where it is not there yet."""
    name = f"modes_fx_body_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    path = cache_folder() / f"{name}.py"
    if not (path.exists() and path.read_text(encoding="utf-8") == source):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".py", delete=False
        ) as file:
            file.write(source)
        os.replace(file.name, path)  # another process sees all of it or nothing
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
