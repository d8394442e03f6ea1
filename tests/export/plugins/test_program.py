"""A program with plugins in the place of its experts gives what the model does."""

import pytest
import torch

pytest.importorskip("triton")

from modes_fx.export.oracle import gated_outputs
from modes_fx.export.plugins.program import with_plugins
from modes_fx.export.program import exportable_inputs, gated_program
from tests.export.conftest import HALF, MORE_TEXT


def test_it_computes_what_the_model_does(gated, program) -> None:
    exchanged, plugins = with_plugins(program.program, "sm_89")
    assert sorted(name.partition("_")[0] for name in plugins) == ["down", "up"]
    inputs = exportable_inputs(gated.model, MORE_TEXT)
    with torch.inference_mode():
        logits = exchanged.module()(**inputs)[0]
    kept = MORE_TEXT["attention_mask"].bool()
    expected = gated.logits(MORE_TEXT, HALF)[kept]
    error = (logits[kept] - expected).abs().max() / expected.abs().max()
    assert float(error) <= 1e-5


def test_it_calls_nothing_of_ours_but_plugins(program) -> None:
    exchanged, _ = with_plugins(program.program, "sm_89")
    called = {str(node.target) for node in exchanged.graph.nodes if node.op == "call_function"}
    ours = {name for name in called if "modes_fx" in name}
    assert {name.partition(".")[0] for name in ours} == {"modes_fx_plugins"}
    assert any(str(node.target).startswith("modes_fx.") for node in program.program.graph.nodes)


def test_it_adds_the_means_of_what_is_skipped(gated, compensating) -> None:
    inputs = exportable_inputs(gated.model, MORE_TEXT)
    given = gated_program(gated.model, compensating, HALF, inputs)
    exchanged, _ = with_plugins(given.program, "sm_89")
    (expected,) = gated_outputs(gated.model, compensating, HALF, inputs, cached=False)
    with torch.inference_mode():
        logits = exchanged.module()(**inputs)[0]
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5
