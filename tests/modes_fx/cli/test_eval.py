"""``modes-fx eval`` says what is missing before it starts."""

import sys

from typer.testing import CliRunner

from modes_fx.cli import app

COMMAND = ["eval", "demo", "--policy", "p", "--target", "0.75", "--tasks", "demo_heldout"]


def test_without_lmms_eval_it_says_what_to_install(monkeypatch, tmp_path) -> None:
    for name in [name for name in sys.modules if name.startswith("modes_fx.evaluation.run")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for name in ("lmms_eval.evaluator", "lmms_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(app, [*COMMAND, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "pip install 'modes-fx[eval]'" in done.stderr
    assert not (tmp_path / "out").exists()
