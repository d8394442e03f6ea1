"""Running a model from the middle gives what running it whole gives."""

import torch
from torch import nn
from torch.testing import assert_close

from modes_fx.attach import find_expert_modules
from modes_fx.calibration.prefix import Prefix, find_stack, recording, resuming
from tests.tiny import chat, tiny_vlm

CALL = chat(text=6, images=1)


def paths_of(model: nn.Module) -> list[str]:
    return list(find_expert_modules(model))


@torch.no_grad()
def test_resuming_anywhere_gives_the_same_and_skips_what_is_before() -> None:
    model = tiny_vlm(layers=3)
    stack = find_stack(model, paths_of(model))
    assert list(stack.place.values()) == [0, 1, 2]
    prefix = Prefix()
    with recording(stack, prefix):
        whole = model(**CALL).logits
    for place in range(3):
        ran: list[int] = []
        handles = [
            layer.mlp.register_forward_hook(lambda *_, n=n, ran=ran: ran.append(n))
            for n, layer in enumerate(stack.layers)
        ]
        with resuming(stack, prefix, place):
            assert_close(model(**CALL).logits, whole, rtol=0, atol=0)
        for handle in handles:
            handle.remove()
        assert ran == list(range(place, 3))
    assert_close(model(**CALL).logits, whole, rtol=0, atol=0)


@torch.no_grad()
def test_the_image_tower_is_not_run_again() -> None:
    model = tiny_vlm()
    stack = find_stack(model, paths_of(model))
    assert stack.towers == [model.model.visual]
    prefix = Prefix()
    with recording(stack, prefix):
        whole = model(**CALL).logits
    for parameter in model.model.visual.parameters():
        parameter.fill_(torch.nan)
    with resuming(stack, prefix, 0):
        assert_close(model(**CALL).logits, whole, rtol=0, atol=0)


@torch.no_grad()
def test_what_was_remembered_survives_models_that_write_into_it() -> None:
    model = tiny_vlm()
    stack = find_stack(model, paths_of(model))
    prefix = Prefix()
    with recording(stack, prefix):
        model(**CALL)
    kept = prefix.layers[0].clone()

    def write_into(module, args) -> None:
        args[0].zero_()

    stack.layers[1].register_forward_pre_hook(write_into)
    with resuming(stack, prefix, 1):
        model(**CALL)
    assert torch.equal(prefix.layers[0], kept)


def test_experts_in_two_stacks_have_no_stack_to_resume_in() -> None:
    model = nn.Module()
    model.encoder, model.decoder = (nn.ModuleList([nn.Linear(1, 1)]) for _ in range(2))
    assert find_stack(model, ["encoder.0", "decoder.0"]) is None
