"""``modes-fx calibrate`` on the demo model: the files, the table, and errors before long work."""

import json

import pytest
from typer.testing import CliRunner

from modes_fx import SkipPolicy
from modes_fx.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data has only")


def run(*words: str):
    return CliRunner().invoke(app, ["calibrate", *words])


DEMO = ("demo", "--data", "demo", "--samples", "6", "--special-tokens", "text", "--method", "modes")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated")
    return out, run(*DEMO, "--targets", "0.25", "0.5", "--out", str(out), "--json")


def test_it_writes_a_policy_and_a_report(done) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    assert SkipPolicy.from_pretrained(out).targets == [0.25, 0.5]
    report = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report["data"]["samples"] == 6
    assert (out / "report.html").stat().st_size > (out / "report.md").stat().st_size


def test_the_user_sees_the_summary_and_the_table(done) -> None:
    _, result = done
    shown = " ".join(result.stderr.split())
    assert "Calibrating 8 MoE layers of 32 experts on 6 samples" in shown
    assert "same likeliest token" in shown


def test_the_same_again_measures_nothing(done) -> None:
    out, _ = done
    before = (
        (out / "modes_policy.json").read_bytes(),
        (out / "journal" / "journal.jsonl").read_bytes(),
    )
    again = run(*DEMO, "--targets", "0.25", "0.5", "--out", str(out))
    assert again.exit_code == 0, again.output
    assert "measurements of an earlier run are in the journal" in " ".join(again.stderr.split())
    after = (
        (out / "modes_policy.json").read_bytes(),
        (out / "journal" / "journal.jsonl").read_bytes(),
    )
    assert after == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("demo", "other", "--data", "demo"), "name one model to calibrate; these are 2"),
        (("0.5", "--data", "demo"), "name one model to calibrate; these are 0"),
        (("demo", "--data", "demo", "--method", "best"), "--method is one of default, modes"),
        (("demo", "--data", "none.jsonl"), "none.jsonl cannot be read"),
        (("demo", "--data", "demo", "--column", "question"), "--column takes role=column"),
        (("no/such/model", "--data", "demo"), "'no/such/model' cannot be loaded"),
        (("demo", "--data", "demo", "--targets", "75"), "between 0 and 1, got [75.0]"),
        (("demo", "--data", "demo", "--targets", "0.99"), "Ask for at most"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(words, reason, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*words, "--samples", "4", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "modes_policy.json").exists()
