"""Whole decoders through ONNX Runtime: the same hidden states at new batch and sequence sizes."""

import numpy as np
import onnxruntime
import pytest
import torch

from modes_fx.bench.coverage.inputs import takes_images, tiny_inputs
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.calibration.preset import preset_policy
from modes_fx.export.decoder import export_decoder, record_call
from modes_fx.export.onnx.lower import FORMS
from modes_fx.export.onnx.model import save_onnx

TYPES = ("qwen3_vl_moe", "internvl+qwen3_moe", "gpt_oss", "deepseek_v3")
OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


def batch(prefill, copies, more=0):
    """The same prompt several times, with some of its last tokens once more."""
    return {
        name: torch.cat([value, value[:, value.shape[1] - more :]], 1).repeat(copies, 1)
        if name in OF_TOKENS
        else torch.cat([value] * copies)
        for name, value in prefill.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", [None, 0.75], ids=["nothing skipped", "most skipped"])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_decoder_gives_the_same_in_onnx_runtime(model_type, target, tmp_path) -> None:
    model = tiny_model(model_type)
    prefill = tiny_inputs(model, image=takes_images(model)).prefill
    policy = preset_policy(model, targets=[0.75]) if target else None
    exported = export_decoder(model, policy, target, batch(prefill, 2), batch(prefill, 3, 4))
    inputs = exported.program.graph_signature.user_inputs
    for form in FORMS:
        written = save_onnx(exported.program, tmp_path / f"{form}.onnx", form)
        assert written.layers == len(exported.layers) == 2
        session = onnxruntime.InferenceSession(str(written.path))
        for copies, more in ((1, 0), (4, 7)):
            call = list(record_call(model, batch(prefill, copies, more)).values())
            feeds = {name: value.numpy() for name, value in zip(inputs, call, strict=True)}
            used = [given.name for given in session.get_inputs()]
            got = session.run(None, {name: feeds[name] for name in used})[0]
            with torch.no_grad():
                expected = exported.program.module()(call).numpy()
            assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
