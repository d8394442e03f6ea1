"""What docs/calibrate.md tells people to type works."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from modes_fx import SkipPolicy
from modes_fx.bench.demo_model.questions import calibration_questions
from modes_fx.cli import app
from tests.tiny import save_untrained_demo

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data has only")

PAGE = (Path(__file__).parents[1] / "docs" / "calibrate.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:modes-fx|accelerate launch|torchrun) .*)$", PAGE, re.MULTILINE)
MESSAGES = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_untrained_demo(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the data that the page names."""
    monkeypatch.chdir(tmp_path)
    image, text = (q for q in calibration_questions(14) if q.kind in ("digit", "plus"))
    image.images[0].save("cat.png")
    chat = [
        {"role": "user", "content": text.question},
        {"role": "assistant", "content": text.answer},
    ]
    lines = [*(line.strip() for line in MESSAGES), json.dumps({"messages": chat})]
    Path("chats.jsonl").write_text("\n".join(lines * 2))
    table = {
        "prompt": [image.question] * 4,
        "reply": [image.answer] * 4,
        "picture": ["cat.png"] * 4,
    }
    pictures = datasets.Dataset.from_dict(table).cast_column("picture", datasets.Image())
    Path("pictures").mkdir()
    pictures.to_parquet("pictures/train.parquet")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, checkpoint, workplace) -> None:
    """On an untrained model of two layers and fewer samples, to be quick."""
    smaller = re.sub(r"--samples \d+", "--samples 6", command)
    smaller = re.sub(r"(calibrate|calibration) (demo|MODEL)", rf"\1 {checkpoint}", smaller)
    if "--targets" not in smaller:
        smaller += " --targets 0.4 --special-tokens text"
    program, *words = shlex.split(smaller)
    if program == "modes-fx":
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    else:
        launchers = {
            "accelerate": ["accelerate.commands.launch", *words[1:]],
            "torchrun": ["torch.distributed.run", "--standalone", *words],
        }
        launch = [sys.executable, "-m", *launchers[program]]
        subprocess.run(launch, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600)
    assert SkipPolicy.from_pretrained(workplace / "my-policy").targets
    wanted = re.search(r"--(?:num_processes|nproc-per-node) (\d+)", command)
    report = json.loads((workplace / "my-policy" / "report.json").read_text())
    assert report["processes"] == int(wanted[1] if wanted else 1)


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 7
    assert MESSAGES
