"""A whole calibration as a process: killed and gone on, in two processes, and refused in words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modes_fx import SkipPolicy
from modes_fx.bench.demo_model.questions import calibration_questions
from modes_fx.calibration.report import CalibrationReport
from tests.tiny import save_untrained_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLES = 11
KILLED_AFTER = (1, 12, 30)
"""Lines of the journal."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model of two layers in the shape of the demo model."""
    return save_untrained_demo(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> Path:
    """Questions with images in files beside a JSONL file."""
    folder = tmp_path_factory.mktemp("messages")
    with (folder / "chats.jsonl").open("w") as file:
        for number, question in enumerate(calibration_questions(SAMPLES)):
            content = []
            for image in question.images:
                name = f"{number}-{len(content)}.png"
                image.save(folder / name)
                content.append({"type": "image", "image": name})
            content.append({"type": "text", "text": question.question})
            answer = {"role": "assistant", "content": question.answer}
            chat = [{"role": "user", "content": content}, answer]
            file.write(json.dumps({"messages": chat}) + "\n")
    return folder / "chats.jsonl"


@pytest.fixture(scope="module")
def command(checkpoint, messages) -> list[str]:
    options = ["--targets", "0.4", "0.6", "--batch-size", "2", "--special-tokens", "text"]
    return ["modes_fx.calibration", str(checkpoint), "--data", str(messages), *options]


def start(module: list[str], out: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), *module, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("modes_*")}


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """The folder of a calibration that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(command, out))
    return out


def begun_like(whole: Path, out: Path, lines: int = 1) -> Path:
    """A folder with the first lines of a journal; the first says when the calibration began."""
    journal = out / "journal" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    begun = (whole / "journal" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(begun[:lines]))
    return journal


def test_a_run_that_is_killed_again_and_again_gives_the_same_files(command, whole, tmp_path):
    journal = begun_like(whole, tmp_path)
    for lines in KILLED_AFTER:
        process = start(command, tmp_path)
        while process.poll() is None and journal.read_bytes().count(b"\n") <= lines:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        assert not results(tmp_path)
    finish(start(command, tmp_path))
    assert results(tmp_path) == results(whole)
    kept = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:]]
    assert len(set(kept)) == len(kept), "nothing was measured twice"


def test_two_processes_give_the_same_files_as_one(command, whole, tmp_path):
    begun_like(whole, tmp_path)
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output = finish(start(command, tmp_path, launcher))
    assert output.count("Calibrating 2 MoE layers of 32 experts on 11 samples") == 1
    assert results(tmp_path) == results(whole)
    report = CalibrationReport.model_validate_json((tmp_path / "report.json").read_text())
    assert report.processes == 2


def test_the_report_says_what_the_policy_reached(whole):
    policy = SkipPolicy.from_pretrained(whole)
    report = CalibrationReport.model_validate_json((whole / "report.json").read_text())
    assert [target.target for target in report.targets] == policy.targets == [0.4, 0.6]
    for target in report.targets:
        reached = policy.provenance.reached[str(target.target)]
        assert target.scores.kl == reached.kl
        assert target.scores.skip_ratio == pytest.approx(target.target, abs=0.01)
    assert report.data.samples == SAMPLES
    assert report.data.held_back == SAMPLES // 2
    assert report.peak_memory["host"] > 0
    assert not list((whole / "journal").glob("logits-*")), "the predictions are gone at the end"


def test_the_page_holds_everything_it_shows(whole):
    page = (whole / "report.html").read_text()
    assert "<h1>Calibration of" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_another_calibration_is_refused_by_what_differs(command, whole):
    changed = [word if word != "text" else "keep" for word in command]
    output = finish(start([*changed, "--samples", "7"], whole), code=2)
    assert "holds the journal of another calibration" in output
    assert "samples was 11, is 7" in output
    assert "special_token_ids was []" in output
    assert "Traceback" not in output


def test_a_full_disk_at_the_end_loses_nothing(command, whole, tmp_path):
    shutil.copytree(whole / "journal", tmp_path / "out" / "journal")
    (tmp_path / "out" / "modes_policy.json").mkdir()
    output = finish(start(command, tmp_path / "out"), code=2)
    assert "the results cannot be written" in " ".join(output.split())
    assert "run the same again, which measures nothing anew" in " ".join(output.split())
    (tmp_path / "out" / "modes_policy.json").rmdir()
    finish(start(command, tmp_path / "out"))
    assert results(tmp_path / "out") == results(whole)
