"""modes-fx demo: output goes where it belongs, and a failed check is exit code 1."""

import json

import pytest
from typer.testing import CliRunner

from modes_fx.bench import demo
from modes_fx.cli import app
from tests.bench.demo.conftest import make_report


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs the command with a report made by hand in place of the real run."""

    def run(*arguments: str, failures: tuple[str, ...] = ()):
        report = make_report().model_copy(update={"failures": list(failures)})
        monkeypatch.setattr(demo, "run_demo", lambda *_, **__: report)
        return CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *arguments])

    return run


def test_the_summary_goes_to_standard_output(ran):
    result = ran()
    assert result.exit_code == 0
    assert "single threshold" in result.stdout


def test_with_json_standard_output_holds_the_report_alone(ran):
    result = ran("--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["moe_layers"] == 2
    assert "single threshold" in result.stderr


def test_a_failed_check_is_1_and_named(ran):
    result = ran(failures=("tau 0, one image: too far",))
    assert result.exit_code == 1
    assert "tau 0, one image: too far" in result.stdout


def test_a_file_in_the_way_is_wrong_usage(tmp_path):
    tmp_path.joinpath("taken").write_text("")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "taken")])
    assert result.exit_code == 2
