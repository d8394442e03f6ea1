"""The sizes that engines are built for, and what an artifact of them holds."""

import pytest
import torch

from modes_fx.export import export, verify
from modes_fx.export.errors import ExportError
from modes_fx.export.formats import find_format
from modes_fx.export.program import exportable_inputs
from modes_fx.export.sizes import SizeRange, size_ranges
from tests.export.conftest import HALF, IMAGE, TEXT
from tests.tiny import chat, left_padded

pytest.importorskip("onnxruntime")


def test_batch_and_length_may_grow(gated, program) -> None:
    inputs = exportable_inputs(gated.model, TEXT)
    sizes = size_ranges(program, inputs, 4, 100, fixed=True)
    batch, length = inputs["input_ids"].shape
    expected = [SizeRange(1, batch, 4), SizeRange(1, length, 100)]
    assert sizes["input_ids"] == sizes["attention_mask"] == expected
    assert sizes["position_ids"] == [3, *expected]


def test_other_formats_build_no_engines() -> None:
    with pytest.raises(ExportError, match="pt2 has no option compute_capabilities"):
        find_format("pt2", compute_capabilities=["8.9"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engines_take_images_of_the_size_they_were_built_with(gated, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path / "artifact"
    writer = find_format("tensorrt", compute_capabilities=["8.9"])
    manifest = export(gated.model, gated.policy, HALF, {"image": IMAGE}, folder, format=writer)
    fixed = {value.name: value.fixed for value in manifest.components["image"].inputs}
    assert fixed["image_grid_thw"] == IMAGE["image_grid_thw"].tolist()
    assert fixed["pixel_values"] is None
    assert manifest.fixes_images
    longer = left_padded(chat(12, images=1, seed=2), chat(11, images=1, seed=3))
    (check,) = verify(folder, gated.model, {"image": [longer]})
    assert check.agrees
    # Another shape of as many patches: what could be run, and would be wrong.
    other = {**longer, "image_grid_thw": torch.tensor([[1, 2, 8]] * 2)}
    with pytest.raises(ExportError, match=r"image_grid_thw is .* takes images of the sizes"):
        verify(folder, gated.model, {"image": [other]})


@pytest.mark.slow
def test_an_artifact_holds_an_engine_for_each_capability(gated, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path / "artifact"
    writer = find_format("tensorrt", compute_capabilities=["8.6", "12.0"])
    manifest = export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, format=writer)
    assert {"text.sm86.engine", "text.sm120.engine", "text.onnx"} <= manifest.files.keys()
    assert manifest.details["compute capabilities"] == "8.6, 12.0"
    assert "have not been run" in manifest.components["text"].checked_in
    assert manifest.components["text"].time_ratio is None
