"""What README.md tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r"modes-fx ((?:[a-z-]+ ?)+)`", README)))


@pytest.fixture
def one_thread():
    """The demo model is faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code, one_thread, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    # Inductor is tried elsewhere; here its C++ compiler would take most of the time.
    named = "backend=modes_backend"
    assert named in code
    exec(code.replace(named, f'{named}, options={{"compiler": "eager"}}'), {})
    assert (tmp_path / "my-policy" / "modes_policy.json").exists()
    assert "8 of 8 MoE layers rewritten" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command):
    result = CliRunner().invoke(app, [*shlex.split(command), "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
