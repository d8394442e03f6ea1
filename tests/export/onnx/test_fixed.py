"""Images of one size as constants: nothing that follows from their sizes is computed any more."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime

from modes_fx.export.calls import image_sizes, images
from modes_fx.export.onnx.model import save_onnx
from modes_fx.export.program import exportable_inputs, gated_program
from tests.export.conftest import HALF, IMAGE, TEXT


@pytest.fixture(scope="module")
def taken(gated):
    return exportable_inputs(gated.model, IMAGE)


@pytest.fixture(scope="module")
def written(gated, taken, tmp_path_factory):
    program = gated_program(gated.model, gated.policy, HALF, taken).program
    path = tmp_path_factory.mktemp("fixed") / "model.onnx"
    return save_onnx(program, path, "blocked", outputs=["logits"], fixed=taken).path


def run(path, inputs):
    session = onnxruntime.InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: inputs[name].numpy() for name in names})[0]


def test_inputs_that_tell_sizes_are_told_from_others(taken) -> None:
    assert list(image_sizes(taken)) == ["image_grid_thw"]
    assert list(images(taken)) == ["pixel_values"]
    assert not image_sizes(TEXT)


def test_sizes_are_no_inputs_and_the_outputs_are_the_models(gated, written, taken) -> None:
    shapes = {value.name: tuple(value.shape) for value in ir.load(written).graph.inputs}
    assert "image_grid_thw" not in shapes
    assert shapes["pixel_values"] == tuple(taken["pixel_values"].shape)
    assert all(isinstance(size, ir.SymbolicDim) for size in shapes["input_ids"])
    said = IMAGE["attention_mask"].bool().numpy()
    expected = gated.logits(IMAGE, HALF).numpy()[said]
    np.testing.assert_allclose(run(written, taken)[said], expected, atol=1e-4, rtol=1e-4)


def test_the_vision_tower_has_fixed_shapes(written) -> None:
    nodes = list(ir.load(written).graph)
    (patches,) = [node for node in nodes if node.op_type == "Conv"]
    reached, todo = set(), [patches]
    while todo:
        for output in todo.pop().outputs:
            new = {use.node for use in output.uses()} - reached
            reached |= new
            todo += new
    softmax = next(node for node in nodes if node.op_type == "Softmax" and node in reached)
    assert all(isinstance(size, int) for size in softmax.outputs[0].shape)


@pytest.mark.slow
def test_texts_keep_what_they_have(gated, tmp_path) -> None:
    inputs = exportable_inputs(gated.model, TEXT)
    program = gated_program(gated.model, gated.policy, HALF, inputs).program
    path = save_onnx(program, tmp_path / "model.onnx", fixed=inputs).path
    assert {value.name for value in ir.load(path).graph.inputs} == set(inputs)
