"""An artifact for ONNX Runtime: the policy inside, checked where it will run."""

import json

import onnx
import pytest
import torch

from modes_fx.export import ExportError, export, verify
from modes_fx.export.onnx.files import Onnx, Session
from modes_fx.export.program import exportable_inputs
from modes_fx.policy_file import POLICY_FILE
from tests.export.conftest import HALF, MORE_TEXT, TEXT


@pytest.fixture(scope="module")
def artifact(gated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "artifact"
    manifest = export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, format="onnx")
    return folder, manifest


def test_it_is_checked_in_the_runtime_that_it_is_for(artifact, gated) -> None:
    folder, manifest = artifact
    text = manifest.components["text"]
    assert text.checked_in == "ONNX Runtime"
    assert manifest.details["opset"] == "20"
    assert text.time_ratio is not None
    (check,) = verify(folder, gated.model, {"text": [MORE_TEXT]})
    assert check.agrees
    assert check.shapes["input_ids"] == [3, 13]


def test_only_standard_operators_are_left(artifact, gated) -> None:
    folder, _ = artifact
    model = onnx.load(folder / "text.onnx", load_external_data=False)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert [value.name for value in model.graph.input] == list(exportable_inputs(gated.model, TEXT))
    assert [value.name for value in model.graph.output] == ["logits"]


def test_the_policy_travels_in_the_model(artifact, gated) -> None:
    folder, _ = artifact
    model = onnx.load(folder / "text.onnx", load_external_data=False)
    (policy,) = [entry.value for entry in model.metadata_props if entry.key == POLICY_FILE]
    assert json.loads(policy) == json.loads((folder / "policy" / POLICY_FILE).read_text())


def test_what_is_no_model_is_refused(tmp_path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load text\.onnx"):
        Session(tmp_path / "text.onnx")


def test_without_thresholds_it_is_the_model(gated, artifact) -> None:
    folder, _ = artifact
    keeping = Onnx().keeping(None, folder, "text")
    with torch.no_grad():
        expected = gated.model(**TEXT).logits
    kept = TEXT["attention_mask"].bool()
    (logits,) = keeping(exportable_inputs(gated.model, TEXT))
    assert (logits - expected)[kept].abs().max() <= 1e-5 * expected.abs().max()
