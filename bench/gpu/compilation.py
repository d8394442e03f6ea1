"""Compile every configuration that is shipped, and hold each kernel against what must be true.

Run for one Triton: ``python -m modes_fx.bench.gpu.compilation OUT.json [TARGET ...]``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from pydantic import BaseModel

from modes_fx.bench.gpu.shapes import LAYERS, Layer
from modes_fx.bench.gpu.targets import (
    MULTIPROCESSORS,
    TARGETS,
    Compiled,
    compile_call,
)
from modes_fx.kernels.triton import compaction, launch
from modes_fx.kernels.triton.calls import Call, recorded
from modes_fx.kernels.triton.config import Configurations, PrefillRule, choose
from modes_fx.kernels.triton.limits import SHARED_BYTES, Device, shared_need
from modes_fx.kernels.triton.offline import compiling_for
from modes_fx.kernels.triton.problem import Problem, prepare

GEMMS = ("up_gemm", "down_gemm")
PREFILL_TOKENS = 4096
SMALL_TOKENS = 64


class Entry(BaseModel):
    """One compiled kernel and what is wrong with it.

    Attributes:
        target: what it was compiled for.
        layer: whose shape it has.
        dtype: of the weights.
        kernel: its name.
        tile: its block sizes, warps and stages.
        need: bytes of shared memory that were predicted; 0 where nothing was.
        compiled: what the compiler made of it.
        failures: what must be true of it and is not.
    """

    target: str
    layer: str
    dtype: str
    kernel: str
    tile: str
    need: int
    compiled: Compiled
    failures: list[str]


class Compilation(BaseModel):
    """Everything that one version of Triton compiled."""

    triton: str
    entries: list[Entry]

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words."""
        return [
            f"triton {self.triton}, {e.target}, {e.layer} {e.dtype}, {e.kernel} {e.tile}: {failure}"
            for e in self.entries
            for failure in e.failures
        ]


def compile_all(targets: list[str]) -> Compilation:
    """Compile for each target, with the Triton that is imported."""
    entries = []
    for target in targets:
        with compiling_for(target):
            for layer, dtype, call, need in _distinct(target):
                compiled = compile_call(call, target)
                entry = Entry(
                    target=target,
                    layer=layer.name,
                    dtype=str(dtype).removeprefix("torch."),
                    kernel=call.name,
                    tile=_tile(call),
                    need=need,
                    compiled=compiled,
                    failures=check(call.name, dtype, compiled, target, need),
                )
                entries.append(entry)
        print(f"{target}: {sum(e.target == target for e in entries)} kernels", file=sys.stderr)
    return Compilation(triton=triton.__version__, entries=entries)


def check(kernel: str, dtype: torch.dtype, compiled: Compiled, target: str, need: int) -> list[str]:
    """Return what must be true of a kernel and is not.

    Args:
        kernel: its name.
        dtype: of the weights.
        compiled: what the compiler made of it.
        target: what for.
        need: the shared memory that was predicted; 0 where nothing was.
    """
    failures = []
    if need and compiled.shared > need:
        failures.append(f"{compiled.shared} bytes of shared memory, {need} were predicted")
    if compiled.spilled:
        failures.append(f"{compiled.spilled} bytes of registers are spilled")
    if compiled.shared > SHARED_BYTES[target]:
        failures.append(f"{compiled.shared} bytes of shared memory, {SHARED_BYTES[target]} exist")
    if kernel in GEMMS and dtype != torch.float32 and not compiled.tensor_cores:
        failures.append("no tensor-core instruction")
    if kernel.startswith("decode") and dtype.itemsize > 1 and not compiled.wide_loads:
        failures.append("no 128-bit load")
    return failures


def dtypes_of(layer: Layer, target: str) -> list[torch.dtype]:
    """Return what the weights of a layer are compiled as."""
    if layer is not next(iter(LAYERS.values())):
        return [torch.bfloat16]
    others = [torch.float8_e4m3fn] if device_like(target).has_float8 else []
    return [torch.bfloat16, torch.float16, torch.float32, *others]


def device_like(target: str) -> Device:
    """Return a device of a target."""
    return Device(target, MULTIPROCESSORS[target], SHARED_BYTES[target])


def problem_of(layer: Layer, dtype: torch.dtype, tokens: int, target: str) -> Problem:
    """Return a call without data."""
    rows = dtype if dtype.itemsize > 1 else torch.bfloat16
    T, K = tokens, layer.top_k
    return prepare(
        torch.empty(T, layer.hidden, dtype=rows, device="meta"),
        torch.empty(T, K, dtype=torch.int64, device="meta"),
        torch.empty(T, K, dtype=rows, device="meta"),
        layer.params(dtype, "meta"),
        layer.body.to_json(),
        layer.experts,
        device_like(target),
    )


def calls_of(
    layer: Layer, dtype: torch.dtype, target: str
) -> Iterator[tuple[PrefillRule | None, list[Call]]]:
    """Yield every launch that the shipped configurations lead to, rule by rule; None for decode."""
    one = problem_of(layer, dtype, 1, target)
    configurations: Configurations = choose(target, one.shape)
    with recorded(run=False) as calls:
        compaction.gate(one.index, one.weight, layer.experts, _gate(1))
        launch.run_decode(one, configurations)
    yield None, calls
    for tokens, rules in (
        (PREFILL_TOKENS, configurations.rules(one.x.dtype)),
        (SMALL_TOKENS, configurations.rules(one.x.dtype)[:1]),
    ):
        many = problem_of(layer, dtype, tokens, target)
        for chosen in rules:
            rule = launch.fitted(many, chosen)
            with recorded(run=False) as calls:
                compaction.gate(many.index, many.weight, layer.experts, _gate(tokens))
                slots = compaction.compact(many.index, layer.experts, rule.up.block_m)
                launch.run_prefill(many, rule, slots)
            yield rule, calls


def _gate(tokens: int) -> compaction.Gate:
    def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    modality, theta = empty(tokens, torch.int8), empty(5, torch.float32)
    return compaction.Gate(modality, empty(1, torch.int64), theta, "renormalised", 0.0, 0)


def _distinct(target: str) -> Iterator[tuple[Layer, torch.dtype, Call, int]]:
    """Yield each kernel once for each layer, dtype and block size, and its predicted need."""
    for layer in LAYERS.values():
        for dtype in dtypes_of(layer, target):
            seen = set()
            for rule, calls in calls_of(layer, dtype, target):
                for call in calls:
                    key = (call.name, _tile(call))
                    if key not in seen:
                        seen.add(key)
                        yield layer, dtype, call, _need(call.name, rule, layer, dtype, target)


def _need(
    kernel: str, rule: PrefillRule | None, layer: Layer, dtype: torch.dtype, target: str
) -> int:
    if rule is None or kernel not in GEMMS:
        return 0
    rows = max(dtype.itemsize, 2)
    if kernel == "up_gemm":
        return shared_need(rule.up, layer.streams, rows, dtype.itemsize, target)
    return shared_need(rule.down, 1, rows, dtype.itemsize, target)


def _tile(call: Call) -> str:
    sizes = [call.options[name] for name in ("BM", "BN", "BK") if name in call.options]
    tile = "x".join(map(str, sizes))
    tile += f" {call.options['num_warps']}w" if "num_warps" in call.options else ""
    tile += f" {call.options['num_stages']}s" if "num_stages" in call.options else ""
    return tile.strip()


if __name__ == "__main__":
    out, *chosen = sys.argv[1:]
    result = compile_all(chosen or list(TARGETS))
    Path(out).write_text(result.model_dump_json(), encoding="utf-8")
    print("\n".join(result.failures), file=sys.stderr)
