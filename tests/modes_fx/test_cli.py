"""The command line as a newcomer meets it: help, exit codes, and the module entry point."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from modes_fx.cli import app

COMMANDS = ("demo", "explain")


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_help_lists_the_commands_and_exit_codes():
    result = run("--help")
    assert result.exit_code == 0
    for word in (*COMMANDS, "Exit codes", "0 done"):
        assert word in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "Usage: " in result.stdout


@pytest.mark.parametrize(
    "arguments", [("no-such-command",), ("explain",), ("demo", "--no-such-option")]
)
def test_wrong_usage_is_2_and_says_what_is_wrong(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_without_arguments_it_shows_its_help():
    assert "Usage: " in run().output


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "modes_fx", "explain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: modes-fx explain")
