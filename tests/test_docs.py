"""What the pages say works: Python runs, commands are taken, links lead somewhere, targets exist.

The commands of ``docs/calibrate.md`` are run by ``test_docs_calibrate.py``.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.bench.demo_model import (
    calibration_questions,
    encode,
    heldout_questions,
    question_messages,
)
from modes_fx.calibration import preset_policy
from modes_fx.cli import app
from modes_fx.cli.models import load_named_model
from modes_fx.kernels import cpu
from tests.tiny import save_untrained_demo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
MADE = {"docs/cli.md", "docs/messages.md", "docs/coverage.md", "docs/export-matrix.md"}
"""Made from the code; their examples are those of other pages."""
WRITTEN = {page: text for page, text in TEXTS.items() if page not in MADE}

PYTHON = {
    page: re.findall(r"^```python\n(.*?)^```", WRITTEN[page], re.M | re.S) for page in WRITTEN
}
WITH_PYTHON = [page for page, blocks in PYTHON.items() if blocks]

_LINE = re.compile(r"^(?:\.venv/bin/)?modes-fx ([^#\n]*)", re.M)
_INLINE = re.compile(r"`(?:\.venv/bin/)?modes-fx ([^`\n]*)`")
COMMANDS = sorted(
    {
        (page, found.strip())
        for page, text in WRITTEN.items()
        for pattern in (_LINE, _INLINE)
        for found in pattern.findall(text)
    }
)
QUICK = [command for _, command in COMMANDS if command.startswith("explain")]


def example(code: str) -> str:
    """The code with graphs run as they are: inductor is tried elsewhere, and takes much longer."""
    return re.sub(r"(backend=\w+|backend=\"\w+\")", r'\1, options={"compiler": "eager"}', code)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_untrained_demo(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def given(checkpoint) -> dict[str, Any]:
    """What the pages take for granted: a model, its processor, a prompt, chats and a policy."""
    model, processor = load_named_model(str(checkpoint))
    questions = [question for question in heldout_questions(1) if question.images]
    return {
        "model": model,
        "processor": processor,
        "inputs": encode(processor, questions[:1]),
        "chats": [question_messages(q, with_answer=True) for q in calibration_questions(28)],
        "policy": preset_policy(model),
    }


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Work in an empty folder, on one thread, with nothing captured."""
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page != "README.md"])
def test_python_runs_from_the_top_of_a_page_to_its_end(page, given, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "load_kernel", lambda *arguments: False)  # a build for each body
    names = {"modes_fx": __import__("modes_fx"), "torch": torch, **given}
    for code in PYTHON[page]:
        exec(example(code), names)


def test_python_of_the_readme_needs_nothing_else(tmp_path, capsys) -> None:
    (code,) = PYTHON["README.md"]
    assert "backend=" in code
    fewer = example(code).replace("calibration_questions(60)", "calibration_questions(28)")
    assert fewer != example(code)
    exec(fewer, {})
    assert (tmp_path / "my-policy" / "modes_policy.json").exists()
    assert "8 of 8 MoE layers rewritten" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_has_the_options_it_is_given(page, command) -> None:
    """Asked for help behind them, the command line refuses options that it does not know."""
    words = [word for word in shlex.split(command) if word != "..."]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("command", QUICK)
def test_explain_runs(command, checkpoint) -> None:
    words = [
        str(checkpoint) if word in ("demo", "MODEL") else word for word in shlex.split(command)
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page) -> None:
    for link in re.findall(r"\]\((?!http)([^)#\s]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


@pytest.mark.parametrize("page", WRITTEN)
def test_make_targets_exist(page) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    documented = re.findall(r"(?:`|^|&& )make ([a-z-]+)", WRITTEN[page], re.M)
    assert set(documented) <= set(targets)


def test_files_to_touch_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.\w+|/))`", TEXTS["docs/extending.md"])
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).exists(), f"docs/extending.md names {path}"


def test_the_index_names_every_page() -> None:
    index = TEXTS["docs/README.md"]
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
