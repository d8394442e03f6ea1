"""The inputs of the tau = 0 check, and how an error is measured."""

from types import SimpleNamespace

import torch

from modes_fx.bench.demo.tau0 import questions_by_input, relative_error


def test_every_kind_of_input_is_tried():
    images = {
        name: [len(question.images) for question in questions]
        for name, questions in questions_by_input().items()
    }
    assert set(images["text only"]) == {0}
    assert set(images["one image"]) == {1}
    assert set(images["two images"]) == {2}
    assert set(images["padded batch"]) == {0, 1, 2}


def test_the_error_is_relative_to_the_scale_and_blind_to_padding():
    logits = torch.tensor([[[1.0, -4.0], [2.0, 3.0]]])
    changed = torch.tensor([[[99.0, -4.0], [2.0, 3.6]]])

    def model(output):
        return lambda attention_mask: SimpleNamespace(logits=output)

    inputs = {"attention_mask": torch.tensor([[0, 1]])}
    torch.testing.assert_close(relative_error(model(logits), model(changed), inputs), 0.6 / 3)
