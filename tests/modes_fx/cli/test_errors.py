"""Errors of ours end in one clear message; anything else is a bug and keeps its traceback."""

import json

import pytest
import typer
from typer.testing import CliRunner

from modes_fx import MatchError, SkipPolicy
from modes_fx.cli.errors import ReportingGroup

app = typer.Typer(cls=ReportingGroup, pretty_exceptions_enable=False)


@app.command()
def policy(folder: str) -> None:
    SkipPolicy.from_pretrained(folder)


@app.command()
def match() -> None:
    raise MatchError("strict: 1 of 2 MoE layers in this graph were not rewritten")


@app.command()
def bug() -> None:
    json.loads("{")


def test_a_corrupt_policy_names_the_file_and_the_place(tmp_path):
    tmp_path.joinpath("modes_policy.json").write_text('{"alpha": ')
    result = CliRunner().invoke(app, ["policy", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "modes_policy.json" in result.stderr
    assert "line 1" in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1


def test_a_failed_match_is_a_failed_check():
    result = CliRunner().invoke(app, ["match"])
    assert result.exit_code == 1
    assert result.stderr == "Error: strict: 1 of 2 MoE layers in this graph were not rewritten\n"


def test_an_error_that_is_not_ours_is_raised():
    result = CliRunner().invoke(app, ["bug"])
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ValueError, match="property name"):
        raise result.exception
