"""explain: a report of every MoE layer that leaves the model as it was."""

import json

import pytest
import torch
from torch import nn

import modes_fx
from tests.tiny import chat, tiny_vlm

LAYERS = [f"model.language_model.layers.{i}.mlp.experts" for i in range(2)]


@pytest.fixture(autouse=True)
def fresh_captures() -> None:
    torch.compiler.reset()


def test_it_reports_every_layer_and_the_tokens_it_saw() -> None:
    model = tiny_vlm()
    report = modes_fx.explain(model, **chat(text=5, images=1))
    assert [layer.path for layer in report.layers] == LAYERS
    assert report.matched == 2
    assert report.tokens == {"text": 7, "vision": 4}
    assert report.graphs > 1
    assert report.graph_breaks
    assert "2 of 2 MoE layers rewritten" in str(report)
    assert "8 experts, top-2, H 32, I 24" in str(report)
    document = json.loads(report.to_json())
    assert document["matched"] == 2
    assert document["layers"][0]["form"] == "grouped_mm"
    with pytest.raises(ValueError, match="is not attached"):
        modes_fx.detach(model)


def test_it_says_why_a_layer_is_left_alone() -> None:
    model = tiny_vlm(layers=1)
    experts = model.model.language_model.layers[0].mlp.experts
    experts.forward = torch.compiler.disable(experts.forward)
    report = modes_fx.explain(model, **chat(text=3))
    assert report.matched == 0
    assert "no GEMM over stacked expert weights" in report.layers[0].reason
    assert report.layers[0].reason in str(report)


def test_a_model_compiled_in_place_is_explained_all_the_same() -> None:
    model = tiny_vlm(layers=1)
    model.compile(backend="eager")
    assert modes_fx.explain(model, **chat(text=3)).matched == 1


def test_an_attached_model_stays_attached() -> None:
    model = modes_fx.attach(tiny_vlm(layers=1))
    report = modes_fx.explain(model, **chat(text=3))
    assert report.matched == 1
    assert report.tokens == {}
    modes_fx.detach(model)


def test_a_model_without_experts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no MoE layer"):
        modes_fx.explain(nn.Linear(2, 2), input=torch.ones(1, 2))
