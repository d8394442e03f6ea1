"""``modes-fx bench gpu`` and ``modes-fx tune`` where there is no GPU."""

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.cli import app


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["bench", "gpu"], ["tune"]], ids=" ".join)
def test_without_a_gpu_it_ends_with_what_to_do(command) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "sees no GPU" in result.stderr
    assert "make kernels-report" in result.stderr


@pytest.mark.parametrize("command", [["bench", "gpu"], ["tune"]], ids=" ".join)
def test_help_says_what_is_needed(command) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "GPU at hand" in " ".join(result.output.split())
