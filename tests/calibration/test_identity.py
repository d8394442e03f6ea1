"""Digests tell models and samples apart, and nothing else."""

import copy
from dataclasses import replace

import torch

from modes_fx.calibration.identity import PROBES, batch_digest, weights_digest


def test_a_weight_that_was_trained_on_changes_the_digest(model) -> None:
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == digest
    trained = copy.deepcopy(model)
    for parameter in trained.parameters():
        before = parameter.detach().clone()
        parameter.data.mul_(1.001).add_(1e-4)
        assert weights_digest(trained) != digest
        parameter.data.copy_(before)
    assert weights_digest(trained) == digest


def test_only_a_few_values_are_read() -> None:
    layer = torch.nn.Linear(1000, 100, bias=False)
    digest = weights_digest(layer)
    layer.weight.data.view(-1)[1] += 1
    assert weights_digest(layer) == digest
    layer.weight.data.view(-1)[layer.weight.numel() // PROBES] += 1
    assert weights_digest(layer) != digest


def test_weights_that_are_offloaded_have_no_values_to_read(model) -> None:
    assert weights_digest(copy.deepcopy(model).to("meta")) != weights_digest(model)


def test_everything_in_a_batch_is_in_its_digest(batches) -> None:
    batch = batches[1]
    digests = {batch_digest(batch), batch_digest(replace(batch, held_back=True))}
    digests.add(batch_digest(replace(batch, samples=[*batch.samples[1:], batch.samples[0]])))
    digests.add(batch_digest(replace(batch, answer_mask=batch.answer_mask.roll(-1, 1))))
    for name, value in batch.inputs.items():
        changed = {**batch.inputs, name: value.roll(1, -1)}
        if not torch.equal(changed[name], value):
            digests.add(batch_digest(replace(batch, inputs=changed)))
    assert len(digests) >= 6
    assert batch_digest(batch) in digests
