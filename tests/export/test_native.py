"""A program without Python runs a package, on inputs of sizes that it was not exported with."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from modes_fx.export import Manifest, export
from modes_fx.export.aoti import LOAD_ORDER
from modes_fx.export.oracle import gated_outputs
from modes_fx.export.program import exportable_inputs
from tests.export.conftest import HALF, MORE_TEXT, TEXT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(gated, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "artifact"
    export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, format="aoti")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the program, built by the lines of the page; without Python's variables and paths."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```\n(TORCH=.*?)^```", page, re.M | re.S)
    folder = tmp_path_factory.mktemp("native")
    shutil.copytree(ROOT / "export" / "native", folder / "export" / "native")
    torch_folder = Path(torch.__file__).parent
    lines = re.sub(r"^TORCH=.*", f"TORCH={torch_folder}", lines, count=1, flags=re.M)
    subprocess.run(["bash", "-ec", lines], cwd=folder, check=True)

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [folder / "run_package", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return call


def test_it_computes_what_the_model_does(run, artifact, gated, tmp_path) -> None:
    given, taken = tmp_path / "given.pt", tmp_path / "taken.pt"
    torch.save(exportable_inputs(gated.model, MORE_TEXT), given)
    done = run(artifact, "text", given, taken)
    assert done.returncode == 0, done.stderr
    kept = MORE_TEXT["attention_mask"].bool()
    expected = gated.logits(MORE_TEXT, HALF)[kept]
    (logits,) = torch.load(taken)
    error = (logits[kept] - expected).abs().max() / expected.abs().max()
    assert float(error) <= 1e-5


def test_it_adds_the_means_of_what_is_skipped(run, gated, compensating, tmp_path) -> None:
    folder, given, taken = (tmp_path / name for name in ("artifact", "given.pt", "taken.pt"))
    export(gated.model, compensating, HALF, {"text": TEXT}, folder, format="aoti")
    inputs = exportable_inputs(gated.model, MORE_TEXT)
    torch.save(inputs, given)
    done = run(folder, "text", given, taken)
    assert done.returncode == 0, done.stderr
    (expected,) = gated_outputs(gated.model, compensating, HALF, inputs, cached=False)
    (logits,) = torch.load(taken)
    error = (logits - expected).abs().max() / expected.abs().max()
    assert float(error) <= 1e-5


def test_it_says_what_a_package_was_made_from(run, artifact) -> None:
    said = dict(line.split(" = ") for line in run(artifact, "text").stdout.splitlines())
    manifest = Manifest.load(artifact)
    assert said["modes_fx_policy_sha256"] == manifest.policy_sha256
    assert float(said["modes_fx_target"]) == HALF
    assert said["modes_fx_instruction_set"] == manifest.details["instruction set"]
    assert said["modes_fx_inputs"].split() == [v.name for v in manifest.components["text"].inputs]


def test_a_processor_that_lacks_the_instructions_is_told_so(run, artifact) -> None:
    done = run(artifact, "text", "given.pt", "taken.pt", ATEN_CPU_CAPABILITY="default")
    if Manifest.load(artifact).details["instruction set"] == "default":
        pytest.skip("this processor has no instructions that another one lacks")
    assert done.returncode == 1
    assert re.search(r"was compiled for avx\w+, which this processor \(DEFAULT\) has", done.stderr)


def test_a_library_that_is_missing_is_named(run, artifact, tmp_path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    first = (artifact / "lib" / LOAD_ORDER).read_text().split()[0]
    os.remove(tmp_path / "copy" / "lib" / first)
    done = run(tmp_path / "copy", "text", "given.pt", "taken.pt")
    assert done.returncode == 1
    assert f"{first} is missing: copy the whole folder" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("attention_mask"), "attention_mask is missing"),
        (lambda given: given.update(more=torch.ones(1)), "and no more"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(run, artifact, gated, tmp_path, change, message):
    given = exportable_inputs(gated.model, TEXT)
    change(given)
    torch.save(given, tmp_path / "given.pt")
    done = run(artifact, "text", tmp_path / "given.pt", tmp_path / "taken.pt")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "taken.pt").exists()
