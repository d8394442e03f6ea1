"""An artifact is written, checked against its model, and is all there or not at all."""

import subprocess
import sys

import pytest
import torch

from modes_fx.export import ExportError, Manifest, export, verify
from modes_fx.export import write as write_module
from modes_fx.export.pt2 import Pt2
from tests.export.conftest import HALF, MORE_TEXT, TEXT
from tests.tiny import tiny_vlm

LOAD_ALONE = """
import sys
import torch
import modes_fx.ops
program = torch.export.load(sys.argv[1]).module()
torch.save(program(**torch.load(sys.argv[2]))[0], sys.argv[3])
"""


@pytest.fixture(scope="module")
def artifact(gated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "artifact"
    manifest = export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, name="tiny")
    return folder, manifest


def test_it_says_what_it_holds(artifact) -> None:
    folder, manifest = artifact
    assert Manifest.load(folder) == manifest
    text = manifest.components["text"]
    assert (text.layers, text.rewritten) == (2, 2)
    assert text.max_error <= manifest.tolerance == 1e-4
    batch, length = text.inputs[0].shape
    assert isinstance(batch, str)
    (logits,) = text.outputs
    assert logits.shape == [batch, length, 64]
    assert text.checked_in == "torch"
    assert sorted(manifest.files) == ["policy/modes_policy.json", "text.pt2"]


def test_verify_compares_it_on_other_inputs(artifact, gated) -> None:
    folder, _ = artifact
    (check,) = verify(folder, gated.model, {"text": [MORE_TEXT]})
    assert check.agrees
    assert check.shapes["input_ids"] == [3, 13]


def test_verify_notices_other_weights(artifact) -> None:
    folder, _ = artifact
    (check,) = verify(folder, tiny_vlm(seed=1), {"text": [MORE_TEXT]})
    assert not check.agrees


def test_verify_refuses_another_model(artifact) -> None:
    folder, _ = artifact
    with pytest.raises(ExportError, match="was exported from another model"):
        verify(folder, tiny_vlm(layers=1), {"text": [MORE_TEXT]})


def test_another_process_runs_it_with_torch_and_our_ops(artifact, gated, tmp_path) -> None:
    from modes_fx.export.program import exportable_inputs

    folder, _ = artifact
    given, taken = tmp_path / "given.pt", tmp_path / "taken.pt"
    torch.save(exportable_inputs(gated.model, MORE_TEXT), given)
    command = [sys.executable, "-c", LOAD_ALONE, folder / "text.pt2", given, taken]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = MORE_TEXT["attention_mask"].bool()
    expected = gated.logits(MORE_TEXT, HALF)[kept]
    error = (torch.load(taken)[kept] - expected).abs().max() / expected.abs().max()
    assert float(error) <= 1e-5


def test_a_folder_in_use_is_left_alone(gated, tmp_path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError, match="is there already"):
        export(gated.model, gated.policy, HALF, {"text": TEXT}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class FullDisk(Pt2):
    def write(self, gated, inputs, folder, component) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")


class WrongProgram(Pt2):
    def load(self, folder, component):
        right = super().load(folder, component)
        return lambda inputs: [right(inputs)[0] * 1.001]


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (FullDisk(), OSError, "No space left"),
        (WrongProgram(), ExportError, "differ from the model's by 0.001"),
    ],
)
def test_nothing_is_left_where_it_fails(
    gated, program, tmp_path, monkeypatch, broken, error, message
):
    monkeypatch.setattr(write_module, "gated_program", lambda *args, **options: program)
    with pytest.raises(error, match=message):
        export(gated.model, gated.policy, HALF, {"text": TEXT}, tmp_path / "out", format=broken)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(gated, tmp_path) -> None:
    with pytest.raises(
        ExportError, match=r"no format 'tflite'; there are pt2, aoti, onnx, tensorrt"
    ):
        export(gated.model, gated.policy, HALF, {"text": TEXT}, tmp_path / "o", format="tflite")


def test_an_unknown_component_is_refused(gated, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"no component 'audio'; there are text, image, prefill"):
        export(gated.model, gated.policy, HALF, {"audio": TEXT}, tmp_path / "o")
