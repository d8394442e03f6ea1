"""Models whose weights are sharded over two processes give the output of one process."""

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.distributed import DistributedConfig

import modes_fx
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.vocabulary import Modality
from tests.tiny import compile_observed

SHARDINGS = {
    "every expert in parts": {"tp_size": 2},
    "every second expert": {"tp_size": 2, "ep_size": 2, "ep_implementation": "all_reduce"},
}
IDS = torch.arange(8, 20)[None]


def tiny() -> nn.Module:
    """One layer of 8 experts, top-4."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=4,
        moe_intermediate_size=24,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("mlp.gate.weight", "gate_up_proj", "down_proj")):
            nn.init.normal_(parameter, std=1.0 if name.endswith("gate.weight") else 0.1)
    return model


def outputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits with all pairs kept, and with about half of them skipped."""
    torch.compiler.reset()
    compiled, reports = compile_observed(modes_fx.attach(model), strict=True)
    kept = compiled(input_ids=IDS).logits
    assert [(report.status, report.gated) for report in reports] == [("rewritten", True)]
    theta = keep_all_theta()
    theta[Modality.TEXT] = 0.25
    set_thetas(model, dict.fromkeys(find_expert_modules(model), theta))
    return kept, compiled(input_ids=IDS).logits


def in_process(rank: int, checkpoint: Path, port: int, expected: tuple[torch.Tensor, ...]) -> None:
    """What each of the two processes does."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with torch.no_grad():
        for sharding in SHARDINGS.values():
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, distributed_config=DistributedConfig(**sharding)
            )
            for got, wanted in zip(outputs(model.eval()), expected, strict=True):
                assert_close(got, wanted, rtol=0, atol=1e-5)
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_give_the_output_of_one(tmp_path) -> None:
    one = tiny()
    one.save_pretrained(tmp_path)
    with torch.no_grad():
        original = one(input_ids=IDS).logits
        expected = outputs(one)
    assert_close(expected[0], original, rtol=0, atol=1e-5)
    assert (expected[1] - original).abs().max() > 1e-2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(in_process, (tmp_path, port, expected), nprocs=2)
