"""A program with plugins in the place of its experts gives what the model does."""

import pytest
import torch

pytest.importorskip("triton")

from modes_fx.export.oracle import gated_outputs
from modes_fx.export.plugins.program import with_plugins
from modes_fx.export.plugins.ptx import of_one_token
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


def test_policies_that_keep_some_pairs_whatever_their_share_are_taken(gated) -> None:
    policy = gated.policy.model_copy(update={"min_k": 1})
    inputs = exportable_inputs(gated.model, MORE_TEXT)
    exchanged, _ = with_plugins(gated_program(gated.model, policy, HALF, inputs).program, "sm_89")
    (expected,) = gated_outputs(gated.model, policy, HALF, inputs, cached=False)
    with torch.inference_mode():
        logits = exchanged.module()(**inputs)[0]
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_sizes_that_a_program_leaves_open_are_numbers_for_the_compiler(program) -> None:
    _, plugins = with_plugins(program.program, "sm_89")
    for _, inputs in plugins.values():
        rows, weight, index, *params = (of_one_token(value) for value in inputs)
        assert rows.shape[0] == 1
        assert weight.shape == index.shape == (1, 2)
        assert [p.shape for p in params] == [value.shape for value in inputs[3:]]


def test_it_adds_the_means_of_what_is_skipped(gated, compensating) -> None:
    inputs = exportable_inputs(gated.model, MORE_TEXT)
    given = gated_program(gated.model, compensating, HALF, inputs)
    exchanged, _ = with_plugins(given.program, "sm_89")
    (expected,) = gated_outputs(gated.model, compensating, HALF, inputs, cached=False)
    with torch.inference_mode():
        logits = exchanged.module()(**inputs)[0]
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5
