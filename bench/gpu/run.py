"""The GPU benchmark: every case, the report, and what a session on a device needs around it."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton
from pydantic import BaseModel

from modes_fx.bench.gpu.measure import OURS, CaseTiming, Ceilings, measure_case, measure_ceilings
from modes_fx.bench.gpu.shapes import LAYERS, Layer

PREFILL_TOKENS = (4096, 8192, 16384, 32768)
DECODE_TOKENS = (1, 16, 64)
SKIPS = (0.0, 0.5, 0.8, 0.88)


class GpuReport(BaseModel):
    """Everything that one run measured.

    Attributes:
        device: as torch tells it.
        versions: of what computed.
        tests: the last line of the kernels' tests; empty where they were not part of the run.
        ceilings: what the device can do; None for a CPU.
        cases: every routing.
    """

    device: str
    versions: dict[str, str]
    tests: str = ""
    ceilings: Ceilings | None
    cases: list[CaseTiming]


def the_gpu() -> torch.device:
    """Return the device to measure.

    Raises:
        ValueError: torch sees none.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"torch {torch.__version__} sees no GPU: run this on a machine with one, with a build "
            "of torch for it (README: CPU or CUDA). Without a GPU, make kernels-report checks what "
            "can be checked"
        )
    return torch.device("cuda", torch.cuda.current_device())


def run_benchmark(
    layers: Sequence[Layer],
    device: torch.device,
    *,
    tokens: Sequence[int] = (*PREFILL_TOKENS, *DECODE_TOKENS),
    skips: Sequence[float] = SKIPS,
    rounds: int = 20,
    on_case: Callable[[CaseTiming], None] = lambda case: None,
) -> GpuReport:
    """Measure every case.

    Raises:
        Difference: what a way computes is not right; nothing is reported.
    """
    cases = []
    for layer in layers:
        for number in tokens:
            for skip in skips:
                case = measure_case(layer, number, skip, device, rounds)
                cases.append(case)
                on_case(case)
    is_gpu = device.type == "cuda"
    return GpuReport(
        device=torch.cuda.get_device_name(device) if is_gpu else platform.processor() or "cpu",
        versions={
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda or "",
            "hip": torch.version.hip or "",
            "python": platform.python_version(),
        },
        ceilings=measure_ceilings(device) if is_gpu else None,
        cases=cases,
    )


def named_layers(names: Sequence[str]) -> list[Layer]:
    """Return layers by name; the first one where none is named.

    Raises:
        ValueError: there is no such layer.
    """
    unknown = [name for name in names if name not in LAYERS]
    if unknown:
        raise ValueError(f"no layer is named {', '.join(unknown)}: choose from {', '.join(LAYERS)}")
    return [LAYERS[name] for name in names] or [next(iter(LAYERS.values()))]


def row_dtype(name: str) -> torch.dtype:
    """Return a dtype by name.

    Raises:
        ValueError: the kernels have no rows of that dtype.
    """
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name not in known:
        raise ValueError(
            f"the kernels have no rows of dtype {name}: choose from {', '.join(known)}"
        )
    return known[name]


def slug(device: torch.device) -> str:
    """Return a device's name as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in torch.cuda.get_device_name(device))


def render(report: GpuReport) -> str:
    """Return the report as a page that can be attached to an issue."""
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items() if value)
    lines = [
        f"# GPU kernels on {report.device}",
        "",
        f"{versions}.{_measured(report.ceilings)}",
        "",
        *([f"Tests: {report.tests}", ""] if report.tests else []),
        "Microseconds of one layer: median, and quartiles in brackets. Ratios are to the fastest "
        "other way; fractions of the measured ceilings are of what has to be moved and computed.",
        "",
        "| layer | tokens | skipped | way | us | in a CUDA graph | error | ratio | of bandwidth | "
        "of FLOP/s |",
        "|" + " --- |" * 10,
    ]
    return "\n".join(lines + [row for case in report.cases for row in _rows(case, report)]) + "\n"


def _measured(ceilings: Ceilings | None) -> str:
    if ceilings is None:
        return ""
    return (
        f" Measured at most: {ceilings.bandwidth / 1e12:.2f} TB/s, "
        f"{ceilings.rate / 1e12:.0f} TFLOP/s in bfloat16."
    )


def _rows(case: CaseTiming, report: GpuReport) -> list[str]:
    others = [way.microseconds[0] for way in case.ways if way.name != OURS]
    rows = []
    for way in case.ways:
        median, lower, upper = way.microseconds
        ratio = f"{min(others) / median:.2f}x" if way.name == OURS and others else ""
        fractions = ["", ""]
        if report.ceilings is not None:
            bandwidth = case.megabytes / median * 1e12 / report.ceilings.bandwidth
            rate = case.gigaflops / median * 1e15 / report.ceilings.rate
            fractions = [f"{bandwidth:.0%}", f"{rate:.0%}"]
        rows.append(
            f"| {case.layer} | {case.tokens} | {case.skip:.0%} | {way.name} | {median:.1f} "
            f"[{lower:.1f}, {upper:.1f}] | {'yes' if way.in_graph else 'no'} | {way.error:.1e} | "
            f"{ratio} | {' | '.join(fractions)} |"
        )
    return rows


def write(report: GpuReport, out: Path) -> None:
    """Write report.md and report.json into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(render(report), encoding="utf-8")
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
