"""Generation is timed on any model that takes images, and compiling in processes of their own."""

from pathlib import Path

import pytest
import torch

from modes_fx.bench.end_to_end import EndToEndPlan, bench_end_to_end, prompts
from modes_fx.bench.end_to_end.prompts import Source
from modes_fx.bench.end_to_end.run import compile_apart
from modes_fx.bench.end_to_end.worker import OURS
from tests.tiny import save_untrained_demo


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = save_untrained_demo(tmp_path_factory.mktemp("model"), layers=1)
    return Source(str(folder))


def test_prompts_have_an_image_each(source) -> None:
    inputs = source.prompts(2)
    assert inputs["input_ids"].shape[0] == inputs["image_grid_thw"].shape[0] == 2


def test_images_are_resized_before_the_processor_sees_them(source, monkeypatch) -> None:
    seen = []

    def encode(processor, questions):
        seen.extend(image.size for question in questions for image in question.images)
        return {"input_ids": torch.zeros(1, 3, dtype=torch.long), "note": "no tensor"}

    monkeypatch.setattr(prompts, "encode", encode)
    assert list(Source(source.name, image_side=256).prompts(1)) == ["input_ids"]
    assert seen == [(256, 256)]


def test_a_model_without_images_is_refused(source, tmp_path) -> None:
    for file in Path(source.name).iterdir():
        if "processor" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="no processor that takes images"):
        Source(str(tmp_path)).load()


@pytest.mark.slow
def test_all_ways_and_targets_are_timed(source) -> None:
    torch.compiler.reset()
    plan = EndToEndPlan(source, batches=(1, 2), rounds=3, compiler="eager", compilation=False)
    bench = bench_end_to_end(plan)
    assert [timing.batch for timing in bench.batches] == [1, 2]
    targets = [case.target for case in bench.batches[0].cases if case.ours]
    assert targets == [None, 0.25, 0.5]
    assert 0 < bench.skipped[0.25] < bench.skipped[0.5] < 1
    assert not bench.failures


@pytest.mark.slow
def test_compiling_is_cold_once_and_recompiles_nothing(source) -> None:
    found = compile_apart(EndToEndPlan(source, batches=(1,), compiler="eager"), OURS)
    assert found.graphs > 0
    assert found.recompiled == 0
    assert found.peak_bytes > found.weight_bytes > 0


@pytest.mark.slow
def test_a_process_that_fails_says_why(source) -> None:
    with pytest.raises(RuntimeError, match="no such way") as failure:
        compile_apart(EndToEndPlan(source, batches=(1,), compiler="eager"), "no such way")
    assert "exit code 1" in str(failure.value)
