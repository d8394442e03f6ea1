"""Experts of one row in each of two tables, looked up and multiplied with x."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig

import modes_fx
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.tiny import compile_observed

EXPERTS, HIDDEN, TOP_K = 24, 16, 4


class TableExperts(nn.Module):
    """Routes its input itself, and adds a dense layer of it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.down, self.up = (nn.Embedding(EXPERTS, HIDDEN) for _ in range(2))
        self.shared = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x):
        rows = x.reshape(-1, HIDDEN)
        weight, index = self.router(rows).softmax(-1).topk(TOP_K, dim=-1)
        inner = torch.matmul(self.down(index), rows[..., None]).view(len(rows), -1)
        inner = nn.functional.silu(inner) * self.kept(weight)
        return self.shared(x) + torch.matmul(inner[:, None], self.up(index)).view_as(x)

    def kept(self, weight):
        return weight


class Model(nn.Module):
    config = PretrainedConfig()

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input_ids, x):
        return x + self.layer(x)


def call(length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` [B, S] and ``x`` [B, S, H]."""
    return torch.ones(2, length, dtype=torch.long), torch.randn(2, length, HIDDEN)


@pytest.mark.parametrize("length", [6, 1])
def test_looked_up_experts_are_rewritten(length) -> None:
    model, inputs = Model(TableExperts()), call(length)
    compiled, reports = compile_observed(model)
    assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    (report,) = reports
    assert (report.status, report.form) == ("rewritten", "tables"), report.reason
    assert (report.num_experts, report.top_k) == (EXPERTS, TOP_K)
    assert (report.hidden_size, report.intermediate_size) == (HIDDEN, 1)


def test_bfloat16_products_are_added_in_float32() -> None:
    model, (ids, x) = Model(TableExperts()).to(torch.bfloat16), call()
    compiled, reports = compile_observed(model)
    x = x.bfloat16()
    assert_close(compiled(ids, x), model(ids, x), rtol=2e-2, atol=2e-2)
    assert [report.status for report in reports] == ["rewritten"]


def test_thresholds_skip_looked_up_experts() -> None:
    class Skipping(TableExperts):
        def kept(self, weight):
            return weight.masked_fill(reference.routing_share(weight, "renormalised") < 0.25, 0)

    layer, skipping = TableExperts(), Skipping()
    skipping.load_state_dict(layer.state_dict())
    inputs, theta = call(), keep_all_theta()
    theta[Modality.TEXT] = 0.25
    full, skipped = Model(layer)(*inputs), Model(skipping)(*inputs)
    assert not torch.allclose(full, skipped, atol=1e-2)
    model = modes_fx.attach(Model(layer), count_pairs=True)
    compiled, _ = compile_observed(model, strict=True)
    assert_close(compiled(*inputs), full, rtol=1e-5, atol=1e-5)
    set_thetas(model, {"layer": theta})
    modes_fx.pair_counts(model, reset=True)
    assert_close(compiled(*inputs), skipped, rtol=1e-5, atol=1e-5)
    pairs, kept = modes_fx.pair_counts(model)["layer"][Modality.TEXT].tolist()
    assert 0 < kept < pairs == 12 * TOP_K


class Positions(nn.Module):
    """Two tables of one size that embed where something is."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.column = (nn.Embedding(EXPERTS, HIDDEN) for _ in range(2))

    def forward(self, index):
        return self.row(index) + self.column(index)


def test_tables_that_only_embed_are_not_experts() -> None:
    model, index = Positions(), torch.randint(EXPERTS, (3, 4))
    assert find_expert_modules(nn.ModuleList([model, nn.Embedding(64, HIDDEN)])) == {}
    compiled, reports = compile_observed(model)
    assert_close(compiled(index), model(index))
    assert reports == []


def test_attention_over_looked_up_keys_is_not_experts() -> None:
    class Memory(TableExperts):
        def forward(self, x):
            rows = x.reshape(-1, HIDDEN)
            index = self.router(rows).topk(TOP_K, dim=-1).indices
            scores = torch.matmul(self.down(index), rows[..., None]).squeeze(-1).softmax(-1)
            return torch.matmul(scores[:, None], self.up(index)).view_as(x)

    model, inputs = Model(Memory()), call()
    compiled, reports = compile_observed(model)
    assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused"]
    assert "_softmax" in reports[0].reason
