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


@pytest.fixture(scope="module")
def of_a_call_with_an_image() -> modes_fx.ExplainReport:
    torch.compiler.reset()
    model = tiny_vlm()
    report = modes_fx.explain(model, **chat(text=5, images=1))
    with pytest.raises(ValueError, match="is not attached"):
        modes_fx.detach(model)
    return report


def test_it_reports_every_layer_and_the_tokens_it_saw(of_a_call_with_an_image) -> None:
    report = of_a_call_with_an_image
    assert [layer.path for layer in report.layers] == LAYERS
    assert report.matched == 2
    assert report.tokens == {"text": 7, "vision": 4}
    assert report.vision_seen
    assert report.graphs > 1
    assert report.graph_breaks
    assert report.recompiles > 0
    assert "2 of 2 MoE layers rewritten" in str(report)
    assert "8 experts, top-2, H 32, I 24" in str(report)
    document = json.loads(report.to_json())
    assert document["matched"] == 2
    assert document["vision_seen"]
    assert document["layers"][0]["form"] == "grouped_mm"


def test_it_names_each_router_in_full_also_where_layers_are_captured_alone(
    of_a_call_with_an_image,
) -> None:
    report = of_a_call_with_an_image
    for layer, path in zip(report.layers, LAYERS, strict=True):
        assert layer.router == "div <- sum <- topk <- softmax <- mm"
        assert layer.router_weight == path.replace("experts", "gate.weight")
    assert f"topk <- softmax <- mm ({report.layers[0].router_weight})" in str(report)


def test_a_call_with_text_alone_is_told_from_one_with_an_image() -> None:
    report = modes_fx.explain(tiny_vlm(layers=1), **chat(text=3))
    assert (report.vision_seen, report.recompiles) == (False, 0)
    assert "3 text, no vision" in str(report)


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


def test_the_nearest_miss_says_which_pattern_came_furthest_and_where_it_ended() -> None:
    model = tiny_vlm(layers=1)

    class AcrossRows(nn.Module):
        def forward(self, rows):
            return rows.cumsum(0)

    model.get_submodule(LAYERS[0]).act_fn = AcrossRows()
    [layer] = modes_fx.explain(model, **chat(text=3)).layers
    assert layer.status == "refused"
    assert layer.nearest_miss.pattern == "grouped_mm"
    assert layer.nearest_miss.stage == "cut"
    assert layer.nearest_miss.node.startswith("cumsum")
    assert "cumsum" in layer.reason


def test_without_weights_layers_that_match_are_unverified() -> None:
    with torch.device("meta"):
        model = tiny_vlm()
    report = modes_fx.explain(model, **chat(text=3))
    assert [layer.status for layer in report.layers] == ["unverified"] * 2
    assert (report.matched, report.unverified, report.vision_seen) == (0, 2, None)
    assert report.layers[0].router_weight == LAYERS[0].replace("experts", "gate.weight")
    assert report.layers[0].num_experts == 8
    assert "2 match unverified" in str(report)
    assert "tokens not counted" in str(report)
