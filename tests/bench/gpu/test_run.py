"""The benchmark's report, and what is said where there is no GPU."""

import json

import pytest
import torch

from modes_fx.bench.gpu import measure, run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_without_a_gpu_the_user_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"sees no GPU: .* make kernels-report"):
        run.the_gpu()


def test_the_report_names_ways_ratios_and_ceilings(small, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measure, "REPLAYS", 1)
    seen = []
    report = run.run_benchmark(
        [small], torch.device("cpu"), tokens=[3], skips=[0.5], rounds=1, on_case=seen.append
    )
    run.write(report, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert seen == report.cases
    assert page.count("| small | 3 | 50% |") == 3
    (ours,) = [line for line in page.splitlines() if "| modes-fx |" in line]
    assert ours.endswith("x |  |  |")  # a ratio, and no fraction of what no GPU was measured to do
    assert json.loads((tmp_path / "report.json").read_text())["versions"]["torch"]


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no layer is named X: choose from Qwen3-VL-30B-A3B"):
        run.named_layers(["X"])
    with pytest.raises(ValueError, match="no rows of dtype int8"):
        run.row_dtype("int8")
    assert run.named_layers([])[0].name == "Qwen3-VL-30B-A3B"
