"""A compiled package computes what its model does."""

import copy

import pytest
import torch

from modes_fx.export import export, verify
from modes_fx.export.aoti import INSTRUCTION_SET, LOAD_ORDER
from tests.export.conftest import HALF, MORE_TEXT, TEXT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_package_serves_every_target(gated, tmp_path) -> None:
    folder = tmp_path / "artifact"
    given = {"text": TEXT}
    export(gated.model, gated.policy, HALF, given, folder, format="aoti", thresholds_as_inputs=True)
    checks = verify(folder, gated.model, {"text": [MORE_TEXT]})
    assert [(check.target, check.agrees) for check in checks] == [(0.0, True), (HALF, True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_package_for_cuda(gated, tmp_path) -> None:
    folder, model = tmp_path / "artifact", copy.deepcopy(gated.model).to("cuda")
    text, more = ({k: v.to("cuda") for k, v in call.items()} for call in (TEXT, MORE_TEXT))
    manifest = export(model, gated.policy, HALF, {"text": text}, folder, format="aoti")
    assert manifest.device == "cuda"
    (check,) = verify(folder, model, {"text": [more]})
    assert check.agrees


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_package_carries_its_kernels(gated, tmp_path) -> None:
    folder = tmp_path / "artifact"
    manifest = export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, format="aoti")
    assert manifest.details[INSTRUCTION_SET]
    order = (folder / "lib" / LOAD_ORDER).read_text().split()
    assert [name.partition("_")[0] for name in order] == ["library", "experts", "body"]
    assert manifest.components["text"].time_ratio
    (check,) = verify(folder, gated.model, {"text": [MORE_TEXT]})
    assert check.agrees
