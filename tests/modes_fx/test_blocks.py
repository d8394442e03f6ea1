"""Blocks with experts for each modality, in a model of the library and in its decoding."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import Ernie4_5_VLMoeTextConfig
from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import Ernie4_5_VLMoeTextModel

import modes_fx
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.blocks import find_blocks
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.tiny import compile_observed, tiny_vlm


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    """Two layers, each with 8 experts for text and 8 for images, top-2."""
    torch.manual_seed(0)
    config = Ernie4_5_VLMoeTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=[24, 16],
        moe_k=2,
        moe_num_experts=8,
        moe_num_shared_experts=1,
        mlp_layer_types=["sparse"] * 2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 2, 4],
        },
    )
    model = Ernie4_5_VLMoeTextModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "gate_up_proj", "down_proj")):
            nn.init.normal_(parameter, std=1.0 if name.endswith("gate.weight") else 0.1)
    return model


@pytest.fixture
def model(pristine) -> nn.Module:
    torch.compiler.reset()
    with torch.no_grad():
        yield copy.deepcopy(pristine)


def prompt() -> dict[str, torch.Tensor]:
    """An image between its start and end tokens, which are text but go to the image's experts."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (1, 12), generator=generator)
    of_image = torch.zeros_like(ids)
    of_image[:, 2:8] = 1
    return {"input_ids": ids, "moe_mm_token_type_ids": of_image}


def modality_of(call: dict[str, torch.Tensor]) -> torch.Tensor:
    codes = call["moe_mm_token_type_ids"].clone()
    codes[:, [2, 7]] = Modality.TEXT
    return codes


def skipping(
    model: nn.Module, call: dict, modality: torch.Tensor, theta: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The unmodified model with skipped pairs weighted 0, and the fraction that is skipped."""
    of_image = call.get("moe_mm_token_type_ids", torch.zeros_like(modality)).flatten().bool()
    skipped = []

    def zero_skipped(path, args):
        x, index, weight = args
        codes = modality.flatten()[of_image if "vision" in path else ~of_image]
        kept, _ = reference.gate(index, weight, codes, theta, 8, "renormalised")
        skipped.append(kept == 8)
        return x, index, weight.masked_fill(kept == 8, 0)

    handles = [
        experts.register_forward_pre_hook(lambda _, args, path=path: zero_skipped(path, args))
        for path, experts in find_expert_modules(model).items()
    ]
    out = model(**call).last_hidden_state
    for handle in handles:
        handle.remove()
    return out, float(torch.cat(skipped).float().mean())


def test_each_token_is_gated_by_its_modality_whichever_experts_it_goes_to(model, pristine) -> None:
    call = prompt()
    modality = modality_of(call)
    theta = keep_all_theta()
    theta[Modality.TEXT], theta[Modality.VISION] = 0.45, 0.6
    modes_fx.attach(model)
    compiled, reports = compile_observed(model, strict=True)
    kept, original = compiled(**call, modality=modality), pristine(**call)
    assert_close(kept.last_hidden_state, original.last_hidden_state, rtol=0, atol=1e-5)
    assert all(report.status == "rewritten" and report.gated for report in reports)

    set_thetas(model, dict.fromkeys(find_expert_modules(model), theta))
    expected, skipped = skipping(pristine, call, modality, theta)
    got = compiled(**call, modality=modality).last_hidden_state
    assert_close(got, expected, rtol=0, atol=1e-5)
    assert 0.3 < skipped < 0.7

    token = torch.tensor([[9]])
    of_token = torch.zeros_like(token)
    step = {"input_ids": token, "past_key_values": original.past_key_values}
    expected, skipped = skipping(pristine, step, of_token, theta)
    got = compiled(token, past_key_values=kept.past_key_values, modality=of_token)
    assert_close(got.last_hidden_state, expected, rtol=0, atol=1e-5)
    assert skipped > 0


def test_detaching_gives_the_blocks_their_forward_back(model) -> None:
    blocks = find_blocks(model, find_expert_modules(model))
    assert blocks == [layer.mlp for layer in model.layers]
    modes_fx.attach(model)
    assert all("forward" in vars(block) for block in blocks)
    modes_fx.detach(model)
    assert not any("forward" in vars(block) for block in blocks)


def test_a_block_with_one_expert_module_is_left_alone() -> None:
    model = tiny_vlm(layers=1)
    assert find_blocks(model, find_expert_modules(model)) == []
