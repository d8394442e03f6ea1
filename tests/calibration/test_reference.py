"""The full model's predictions, and how far another model is from them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from modes_fx.calibration import Batch, Reference
from modes_fx.calibration.reference import answer_logits, kl_divergence


def test_kl_is_that_of_the_two_distributions() -> None:
    full, changed = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    expected = F.kl_div(
        changed.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none"
    )
    assert_close(kl_divergence(full, changed), expected.sum(-1))


def test_a_token_that_both_exclude_adds_nothing() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert kl_divergence(logits, logits).tolist() == [0.0]


def test_logits_are_those_that_predict_the_answer(model, batches) -> None:
    batch = batches[1]
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    expected = logits[:, :-1][batch.answer_mask[:, 1:]]
    assert_close(answer_logits(model, batch), expected)


def test_a_model_does_not_differ_from_itself(model, reference) -> None:
    difference = reference.compare(model)
    assert difference.kl == 0
    assert difference.kl_by_sample.tolist() == [0.0] * 12


def test_samples_are_in_the_order_of_the_data_whatever_the_batches(model, batches) -> None:
    changed = copy.deepcopy(model)
    changed.model.language_model.layers[0].mlp.experts.down_proj.data.zero_()
    reference = Reference.record(model, batches)
    together = reference.compare(changed)
    for batch, row in ((batches[0], 2), (batches[1], 3)):
        alone = _single(batch, row)
        kl = Reference.record(model, [alone]).compare(changed).kl
        assert_close(together.kl_by_sample[batch.samples[row]].item(), kl, rtol=1e-4, atol=1e-9)
    weights = torch.zeros(12, dtype=torch.float64)
    for batch in batches:
        weights[list(batch.samples)] = batch.answer_mask.sum(1).double()
    assert_close(together.kl, float(together.kl_by_sample @ weights / weights.sum()))


def test_a_sample_is_correct_when_all_its_answer_tokens_are_the_likeliest(model, batches) -> None:
    text, images = batches
    likeliest = answer_logits(model, images).argmax(-1)
    inputs = {**images.inputs, "input_ids": images.inputs["input_ids"].clone()}
    rows, positions = images.answer_mask.nonzero(as_tuple=True)
    right, almost = rows == images.samples.index(4), rows == images.samples.index(8)
    inputs["input_ids"][rows[right], positions[right]] = likeliest[right]
    inputs["input_ids"][rows[almost], positions[almost]] = likeliest[almost] ^ 1
    reference = Reference.record(model, [text, replace(images, inputs=inputs)])
    correct = reference.compare(model).correct
    assert correct[4]
    assert not correct[8]


def test_a_nan_is_an_error_that_names_the_sample(model, batches) -> None:
    broken = copy.deepcopy(model)
    last = batches[0].inputs["input_ids"][batches[0].samples.index(9), -1]
    broken.lm_head.weight.data[last] = torch.nan
    with pytest.raises(ValueError, match=r"logits for sample \d+ are NaN"):
        Reference.record(broken, batches)


def test_samples_must_be_numbered_without_gaps(model, batches) -> None:
    with pytest.raises(ValueError, match="numbered 0 to 5"):
        Reference.record(model, batches[:1])


def _single(batch: Batch, row: int) -> Batch:
    kept = batch.inputs["attention_mask"][row].bool()
    inputs = {
        name: batch.inputs[name][row : row + 1, kept]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    if "pixel_values" in batch.inputs:
        inputs["pixel_values"] = batch.inputs["pixel_values"].view(6, 32, -1)[row]
        inputs["image_grid_thw"] = batch.inputs["image_grid_thw"].view(6, 2, 3)[row]
    return Batch(inputs, batch.answer_mask[row : row + 1, kept], [0])
