"""The check of a GPU machine, as far as it goes without one."""

import pytest
import torch
import typer

from modes_fx.bench.gpu import check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(tmp_path, capsys) -> None:
    with pytest.raises(typer.Exit) as stopped:
        check.main(tmp_path)
    assert stopped.value.exit_code == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_where_tests_fail_nothing_is_timed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(check, "the_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(check, "run_tests", lambda: (False, "1 failed; FAILED tests/one.py::two"))
    monkeypatch.setattr(check, "run_benchmark", lambda *args: pytest.fail("it was timed"))
    with pytest.raises(typer.Exit) as stopped:
        check.main(tmp_path)
    assert stopped.value.exit_code == 1
    assert "FAILED tests/one.py::two" in (tmp_path / "report.md").read_text()


def test_failed_tests_are_named(monkeypatch) -> None:
    monkeypatch.setattr(check, "TESTS", ("tests/there_is_no_such_test.py",))
    passed, text = check.run_tests()
    assert not passed
    assert "there_is_no_such_test" in text
