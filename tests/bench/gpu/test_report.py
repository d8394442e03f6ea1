"""The report without a GPU: what it says, and that it fails where something does not hold."""

import pytest

from modes_fx.bench.gpu.compilation import Compilation, Entry
from modes_fx.bench.gpu.report import make_report, render
from modes_fx.bench.gpu.targets import Compiled


def compilation(*failures: str) -> Compilation:
    compiled = Compiled(
        registers=128, spilled=0, shared=73728, tensor_cores=8, wide_loads=4, instructions=500
    )
    entry = Entry(
        target="sm_90",
        layer="Qwen3-VL-30B-A3B",
        dtype="bfloat16",
        kernel="up_gemm",
        tile="64x128x64 8w 3s",
        need=80000,
        compiled=compiled,
        failures=list(failures),
    )
    return Compilation(triton="3.9.0", entries=[entry])


@pytest.fixture(scope="module")
def report():
    return make_report([compilation()])


def test_the_page_says_first_that_nothing_was_run(report) -> None:
    page = render(report)
    assert "**Static analysis: nothing on this page was run on a GPU.**" in page[:200]
    assert "| sm_90 | up_gemm | 64x128x64 8w 3s | 128 | 73728 | 8 | 4 |" in page
    assert "What does not hold" not in page


def test_our_work_is_the_least_in_every_row_of_the_table(report) -> None:
    for ours, *others in zip(*[iter(report.accounted)] * 3, strict=True):
        assert ours.scheme == "modes"
        assert all(ours.total_bytes < other.total_bytes for other in others)
        assert all(ours.work["launches"] < other.work["launches"] for other in others)


def test_floors_fall_with_the_skip_ratio_and_never_below_the_weights(report) -> None:
    prefill = [item for item in report.predictions if item.tokens == 4096]
    floors = [item.floor_us for item in prefill]
    assert floors == sorted(floors, reverse=True)
    assert floors[-1] > 1.2e9 / 3.35e12 * 1e6  # all experts are hit: a layer's weights are read


def test_what_does_not_hold_is_listed(report) -> None:
    failing = compilation("8 bytes of registers are spilled")
    report = report.model_copy(update={"compilations": [failing]})
    assert report.failures == [
        "triton 3.9.0, sm_90, Qwen3-VL-30B-A3B bfloat16, up_gemm 64x128x64 8w 3s: "
        "8 bytes of registers are spilled"
    ]
    assert report.failures[0] in render(report)
