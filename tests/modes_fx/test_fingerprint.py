"""The config hash follows the architecture and nothing else."""

import pytest
import torch
from transformers import AutoConfig, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from modes_fx.fingerprint import config_hash


def make_config(**text):
    text = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, **text}
    sizes = {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64, "head_dim": 8}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"intermediate_size": 32, "deepstack_visual_indexes": [0]}
    return Qwen3VLMoeConfig(text_config={**sizes, **experts, **text}, vision_config=vision)


def test_saving_loading_and_casting_keep_it(tmp_path):
    config = make_config()
    model = Qwen3VLMoeForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = Qwen3VLMoeForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, attn_implementation="eager"
    )
    hashes = {
        config_hash(config)
        for config in (config, model.config, loaded.config, AutoConfig.from_pretrained(tmp_path))
    }
    assert len(hashes) == 1


def test_how_the_model_runs_does_not_enter():
    other = make_config(use_cache=False)
    other.text_config.output_router_logits = True
    other.text_config.pad_token_id = 3
    assert config_hash(other) == config_hash(make_config())


@pytest.mark.parametrize(
    "change",
    [{"num_experts": 8}, {"num_experts_per_tok": 1}, {"hidden_size": 64}, {"hidden_act": "gelu"}],
)
def test_the_architecture_enters(change):
    assert config_hash(make_config(**change)) != config_hash(make_config())
