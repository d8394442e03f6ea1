"""``modes-fx export`` writes an artifact, ``modes-fx verify`` checks it; both say what is wrong."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.bench.demo_model import load_model
from modes_fx.calibration import preset_policy
from modes_fx.cli import app

RUN = CliRunner()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    preset_policy(load_model()[0]).save_pretrained(folder)
    return folder


def export(policy, out, *options):
    target = json.loads((policy / "modes_policy.json").read_text())["tau"]
    command = ["export", "demo", "--policy", str(policy), "--target", next(iter(target))]
    return RUN.invoke(app, [*command, "--out", str(out), *options])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_model_is_exported_and_verified(policy, tmp_path) -> None:
    out = tmp_path / "artifact"
    done = export(policy, out, "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    components = json.loads(done.stdout)["components"]
    assert {name: one["rewritten"] for name, one in components.items()} == {"text": 8, "image": 8}
    checked = RUN.invoke(app, ["verify", str(out), "--json"])
    assert checked.exit_code == 0, checked.output
    assert [check["agrees"] for check in json.loads(checked.stdout)] == [True, True]
    changed = tmp_path / "changed"
    shutil.copytree(out, changed)
    with (changed / "text.pt2").open("ab") as file:
        file.write(b"more")
    refused = RUN.invoke(app, ["verify", str(changed)])
    assert refused.exit_code == 2
    assert "text.pt2 is not what was exported" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "tflite"], "there is no format 'tflite'; there are pt2"),
        (["--device", "tpu"], "there is no device 'tpu'; there are cpu and cuda"),
        (["--format", "onnx", "--tunable"], "thresholds are constants in the format onnx"),
        (["--components", "audio"], "there is no component 'audio'; there are text, image"),
    ],
)
def test_what_there_is_not_is_refused(policy, tmp_path, options, message) -> None:
    done = export(policy, tmp_path / "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none(policy, tmp_path) -> None:
    done = export(policy, tmp_path / "out", "--format", "aoti", "--device", "cuda")
    assert done.exit_code == 2
    assert "finds no GPU: run on a machine with one" in done.stderr


def test_a_folder_that_is_no_artifact_is_refused(tmp_path) -> None:
    done = RUN.invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 2
    assert "is no artifact: it has no manifest.json" in done.stderr
