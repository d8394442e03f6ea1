"""An exported program computes what the model does, with experts skipped, in any size."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx import attach, detach
from modes_fx.export import ExportError
from modes_fx.export.program import (
    EXPERTS,
    exportable_inputs,
    gated_program,
    gates,
    keeping_every_expert,
)
from tests.export.conftest import HALF, IMAGE, MORE_TEXT, TEXT
from tests.tiny import chat, left_padded


def assert_equal_logits(got, expected, call) -> None:
    kept = call["attention_mask"].bool()
    assert_close(got[kept], expected[kept], rtol=0, atol=1e-5 * float(expected.abs().max()))


def assert_right(program, gated, target, *calls) -> None:
    module = program.program.module()
    for call in calls:
        (got,) = module(**exportable_inputs(gated.model, call))
        assert_equal_logits(got, gated.logits(call, target), call)


def test_text_of_any_batch_and_length(program, gated) -> None:
    assert [layer.status for layer in program.layers] == ["rewritten"] * 2
    assert len(gates(program.program)) == 2
    assert_right(program, gated, HALF, TEXT, MORE_TEXT)


def test_with_thresholds_of_zero_it_is_the_model_and_the_model_is_left_as_it_was(gated) -> None:
    before = {name: value.clone() for name, value in gated.model.state_dict().items()}
    expected = gated.model(**TEXT).logits
    inputs = exportable_inputs(gated.model, TEXT)
    program = gated_program(gated.model, gated.policy, 0.0, inputs)
    assert_close(dict(gated.model.state_dict()), before, rtol=0, atol=0)
    assert_close(gated.model(**TEXT).logits, expected, rtol=0, atol=0)
    (logits,) = program.program.module()(**inputs)
    assert_equal_logits(logits, expected, TEXT)


@pytest.mark.slow
def test_images_of_any_content_and_texts_of_any_length(gated) -> None:
    inputs = exportable_inputs(gated.model, IMAGE)
    program = gated_program(gated.model, gated.policy, HALF, inputs)
    other = left_padded(chat(12, images=1, seed=5), chat(3, images=1, seed=6))
    assert_right(program, gated, HALF, IMAGE, other)


def test_keeping_every_expert_leaves_the_program_as_it_was(program, gated) -> None:
    inputs = exportable_inputs(gated.model, TEXT)
    (before,) = program.program.module()(**inputs)
    with keeping_every_expert(program.program):
        (kept,) = program.program.module()(**inputs)
    assert_equal_logits(kept, gated.model(**TEXT).logits, TEXT)
    (after,) = program.program.module()(**inputs)
    assert torch.equal(after, before)


def test_no_original_expert_is_left(program, gated) -> None:
    stacks = {f"model.{name}" for name, value in gated.model.named_parameters() if value.dim() == 3}
    specs = program.program.graph_signature.input_specs
    inputs = {spec.arg.name for spec in specs if spec.target in stacks}
    nodes = [node for node in program.program.graph.nodes if node.name in inputs]
    assert len(nodes) == 4
    assert {user.target for node in nodes for user in node.users} == {EXPERTS}


def test_an_attached_model_is_refused(gated) -> None:
    attach(gated.model)
    try:
        with pytest.raises(ExportError, match=r"call modes_fx\.detach"):
            gated_program(gated.model, gated.policy, HALF, TEXT)
    finally:
        detach(gated.model)


def test_a_call_without_ids_is_refused(gated) -> None:
    embeddings = {"inputs_embeds": torch.zeros(2, 4, 32)}
    with pytest.raises(ExportError, match="comes from input_ids"):
        gated_program(gated.model, gated.policy, HALF, embeddings)


def test_what_torch_cannot_capture_is_said(gated) -> None:
    broken = {**exportable_inputs(gated.model, TEXT), "position_ids": torch.zeros(5, 5)}
    with pytest.raises(ExportError, match=r"cannot be captured by torch\.export with input_ids"):
        gated_program(gated.model, gated.policy, HALF, broken)
