"""What docs/quantised.md tells people to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "quantised.md"


def test_the_snippet_runs() -> None:
    pytest.importorskip("torchao")
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert callable(names["fast"])


def test_the_command_exists() -> None:
    assert (
        "python -m modes_fx.bench.quantised --policy out/demo/policy --out docs" in PAGE.read_text()
    )
    command = [sys.executable, "-m", "modes_fx.bench.quantised", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--policy" in done.stdout
    assert "--out" in done.stdout
