"""The report on the GPU kernels: what the compiler says, and what they must move and compute.

``python -m modes_fx.bench.gpu.report --out docs`` compiles everything and fails where a kernel is
not as it must be.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from modes_fx.bench.gpu.accounting import SCHEMES, Routing
from modes_fx.bench.gpu.compilation import Compilation, Entry
from modes_fx.bench.gpu.prediction import (
    DECODE_TOKENS,
    H100,
    PREFILL_TOKENS,
    SKIPS,
    Peak,
    Prediction,
    predict,
)
from modes_fx.bench.gpu.routing import random_routing
from modes_fx.bench.gpu.shapes import LAYERS
from modes_fx.bench.gpu.targets import TARGETS
from modes_fx.bench.gpu.versions import compile_all_versions
from modes_fx.kernels.triton.config import Shape, choose
from modes_fx.kernels.triton.limits import SHARED_BYTES

ACCOUNTED_TOKENS = (4096, 256, 1)
LAYER = next(iter(LAYERS.values()))
INTRODUCTION = """\
# GPU kernels, without a GPU

**Static analysis: nothing on this page was run on a GPU.** It says what Triton's compiler made of
the kernels, and what they must move and compute for given routings. That they compute the right
thing is tested in Triton's interpreter. Made by `make kernels-report`, which fails where one of
these does not hold:

- no register is spilled, and shared memory is within the device's limit and what was predicted;
- GEMMs use tensor cores, except in float32, which is multiplied exactly;
- the kernels for single tokens load 128 bits at a time, except weights of eight bits.
"""


class Accounted(BaseModel):
    """The work of one scheme for one routing."""

    scheme: str
    tokens: int
    skip: float
    work: dict[str, int]
    total_bytes: int


class KernelsReport(BaseModel):
    """Everything in docs/kernels.json."""

    compilations: list[Compilation]
    layer: str
    accounted: list[Accounted]
    peak: Peak
    predictions: list[Prediction]

    @property
    def failures(self) -> list[str]:
        """What does not hold."""
        return [failure for part in self.compilations for failure in part.failures]


def make_report(compilations: list[Compilation]) -> KernelsReport:
    """Add up the work of the first layer, and predict its floor."""
    return KernelsReport(
        compilations=compilations,
        layer=LAYER.name,
        accounted=list(account()),
        peak=H100,
        predictions=[
            predict(LAYER, tokens, skip, tile_height(tokens, skip), H100)
            for tokens in (*PREFILL_TOKENS, *DECODE_TOKENS)
            for skip in SKIPS
        ],
    )


def tile_height(tokens: int, skip: float) -> int:
    """Return the rows of a tile that are chosen for an H100, knowing what is skipped."""
    rows = tokens * LAYER.top_k * (1 - skip) / LAYER.experts
    shape = Shape(
        experts=LAYER.experts,
        hidden=LAYER.hidden,
        intermediate=LAYER.intermediate,
        streams=LAYER.streams,
        dtype="bfloat16",
    )
    rules = choose("sm_90", shape).prefill
    fitting = (rule for rule in rules if rule.up_to_rows is None or rows <= rule.up_to_rows)
    return next(fitting).up.block_m


def account() -> Iterable[Accounted]:
    """Yield the work of each scheme, all with the same routing and height of tiles."""
    for tokens in ACCOUNTED_TOKENS:
        for skip in SKIPS:
            index = random_routing(tokens, LAYER.top_k, LAYER.experts, skip)
            routing = Routing.of(index, LAYER.experts)
            for scheme, count in SCHEMES.items():
                work = count(LAYER, routing, tile_height(tokens, skip), 2)
                yield Accounted(
                    scheme=scheme,
                    tokens=tokens,
                    skip=skip,
                    work=asdict(work),
                    total_bytes=work.total_bytes,
                )


def render(report: KernelsReport) -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Compiled", _compiled(report), _registers(report)]
    if report.failures:
        parts += ["## What does not hold", "\n".join(f"- {text}" for text in report.failures)]
    parts += [_accounting(report), _predictions(report)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _compiled(report: KernelsReport) -> str:
    rows = []
    for target in TARGETS:
        row: list[Any] = [target, f"{SHARED_BYTES[target]}"]
        for part in report.compilations:
            entries = [entry for entry in part.entries if entry.target == target]
            failing = sum(bool(entry.failures) for entry in entries)
            largest = max((entry.compiled.shared for entry in entries), default=0)
            row += [len(entries), failing, largest]
        rows.append(row)
    heading = ["target", "shared memory"]
    for part in report.compilations:
        heading += [f"{part.triton}: kernels", "failing", "most shared"]
    return _table(heading, rows)


def _registers(report: KernelsReport) -> str:
    newest = report.compilations[-1]
    entries = [e for e in newest.entries if (e.layer, e.dtype) == (report.layer, "bfloat16")]
    text = (
        f"\nThe kernels of {report.layer} in bfloat16 with triton {newest.triton}: registers a "
        "thread / bytes of shared memory / tensor-core instructions / 128-bit loads. Tiles differ "
        "between targets. All other kernels are in [kernels.json](kernels.json).\n\n"
    )
    rows = [[entry.target, entry.kernel, entry.tile, *_numbers(entry)] for entry in entries]
    heading = ["target", "kernel", "tile", "registers", "shared", "tensor cores", "wide loads"]
    return text + _table(heading, rows)


def _numbers(entry: Entry) -> list[int]:
    compiled = entry.compiled
    return [compiled.registers, compiled.shared, compiled.tensor_cores, compiled.wide_loads]


def _accounting(report: KernelsReport) -> str:
    text = (
        "\n## Work\n\n"
        f"One layer of {report.layer} in bfloat16, the same random routing and height of tiles "
        "for all, counted from the router's choice on. Bytes are those that must cross between a "
        "kernel and memory if each kernel reads every number once: a lower bound, and the same "
        "rule for all. The other schemes are counted from their published design, given the same "
        "gate, and torch's as if compiled without a flaw; its tiles are not known.\n\n"
    )
    rows = [
        [
            item.tokens,
            f"{item.skip:.0%}",
            item.scheme,
            item.work["launches"],
            item.work["tiles"] or "",
            item.work["padded_rows"] if item.work["tiles"] else "",
            f"{item.work['weight_bytes'] / 1e6:.1f}",
            f"{item.work['read_bytes'] / 1e6:.1f}",
            f"{item.work['written_bytes'] / 1e6:.1f}",
            f"{item.total_bytes / 1e6:.1f}",
        ]
        for item in report.accounted
    ]
    heading = ["tokens", "skipped", "scheme", "launches", "tiles", "padded rows"]
    return text + _table([*heading, "weights MB", "read MB", "written MB", "all MB"], rows)


def _predictions(report: KernelsReport) -> str:
    peak = report.peak
    text = (
        "\n## Floor\n\n"
        f"The least time of one layer of {report.layer} on an {peak.name}, at "
        f"{peak.bandwidth / 1e12:.2f} TB/s and {peak.rate / 1e12:.0f} TFLOP/s by its data sheet. "
        "No kernel reaches it; skipping cannot gain more than it allows.\n\n"
    )
    rows = [
        [
            item.tokens,
            f"{item.skip:.0%}",
            item.kept,
            item.experts_hit,
            f"{item.padding:.2f}",
            f"{item.megabytes:.1f}",
            f"{item.gigaflops:.1f}",
            f"{item.floor_us:.1f}",
            item.bound,
        ]
        for item in report.predictions
    ]
    heading = ["tokens", "skipped", "pairs", "experts", "padding", "MB", "GFLOP", "floor us"]
    return text + _table([*heading, "bound"], rows)


def _table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the report.")],
    scratch: Annotated[Path, typer.Option(file_okay=False)] = Path("build"),
    workers: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Compile every kernel for every target, and write kernels.md and kernels.json."""
    compilations = compile_all_versions(
        scratch, list(TARGETS), workers, lambda text: print(text, file=sys.stderr)
    )
    report = make_report(compilations)
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.md").write_text(render(report), encoding="utf-8")
    (out / "kernels.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print("\n".join(report.failures), file=sys.stderr)
    raise typer.Exit(1 if report.failures else 0)


if __name__ == "__main__":
    typer.run(main)
