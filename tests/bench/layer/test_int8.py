"""The int8 row: our ops on quantised copies, right by the weights that the integers stand for."""

import sys

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.bench.layer import IMPLEMENTATIONS
from modes_fx.bench.layer.calls import make_cycle
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.weights import Layer, NotAvailableError
from modes_fx.bench.layer.work import work_of
from modes_fx.bench.shapes import find_shape
from modes_fx.cli import app

TINY = find_shape("tiny")
INT8 = IMPLEMENTATIONS["ours_int8"]


def test_without_torchao_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization.quant_primitives", None)
    with pytest.raises(NotAvailableError, match=r"pip install 'modes-fx\[quant\]'"):
        INT8.prepare(Layer.build(TINY, torch.float32, copies=1), "default")


def test_its_weights_are_half_of_what_bfloat16_has_to_be_read() -> None:
    def read(weight_bytes: int | None) -> float:
        return work_of(TINY, 0, 1, 1, torch.bfloat16, weight_bytes).bytes

    assert read(INT8.weight_bytes) == read(None) / 2


@pytest.mark.slow
class TestWithTorchao:
    @pytest.fixture(autouse=True)
    def torchao(self):
        pytest.importorskip("torchao")
        torch.compiler.reset()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_it_computes_what_its_integers_stand_for(self, dtype) -> None:
        layer = Layer.build(TINY, dtype, copies=2)
        call = make_cycle(TINY, 5, 0.5, dtype, copies=2).calls[0]
        out = INT8.prepare(layer, "default")(call)
        assert largest_error(out, expected(INT8.truth(layer), call)) <= TOLERANCE[dtype]
        assert largest_error(out, expected(layer, call)) > 3e-3  # of the unquantised weights

    def test_the_option_adds_its_rows(self, tmp_path) -> None:
        command = "bench layer --shape tiny --rounds 3 --cache-mib 0.01 --layout default --int8"
        command += f" --tokens 4 --skip 0 0.5 --baselines hf_eager --markdown {tmp_path / 'out.md'}"
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out.md").read_text().count("| ours_int8 |") == 2
