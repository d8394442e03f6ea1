"""The preset needs no data, skips about what it says on random tokens, and keeps a first expert."""

import pytest
import torch
from torch import nn

import modes_fx
from modes_fx import pair_counts
from modes_fx.calibration import preset_policy
from tests.tiny import IMAGE_TOKEN, chat, compile_observed, tiny_vlm


@torch.no_grad()
def test_it_skips_about_what_it_says() -> None:
    model = tiny_vlm()
    policy = preset_policy(model, [0.2, 0.4])
    assert policy == preset_policy(model, [0.2, 0.4])
    modes_fx.attach(model, policy, count_pairs=True)
    compiled, _ = compile_observed(model, strict=True)
    for target in (0.2, 0.4):
        modes_fx.set_target(model, target)
        compiled(**chat(text=100))
        pairs, kept = sum(pair_counts(model, reset=True).values()).sum(0).tolist()
        assert 1 - kept / pairs == pytest.approx(target, abs=0.08)
    assert policy.min_k == 1
    assert policy.provenance.data == "random tokens, no calibration"


def test_no_placeholder_of_an_image_is_drawn() -> None:
    model, seen = tiny_vlm(), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    preset_policy(model)
    assert not (seen[0] == IMAGE_TOKEN).any()


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no MoE layer"):
        preset_policy(nn.Linear(2, 2))
