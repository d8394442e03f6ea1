"""Where a region's combine weights come from, in words."""

import torch
from torch import Tensor, nn

import modes_fx
from tests import blocks
from tests.tiny import GroupedExperts, compile_observed, routed_tokens


class Routed(nn.Module):
    """A block with a router of its own in front of the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(16, 6, bias=False), GroupedExperts()

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        weight, index = scores.softmax(-1).topk(2)
        return index, weight

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(x)
        return self.experts(x, *self.choose(self.gate(x)))


class BiasedChoice(Routed):
    """Chooses by biased scores, weights by the scores themselves, as group-limited routers do."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6))

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        scores = scores.sigmoid()
        index = (scores + self.bias).topk(2).indices
        weight = scores.gather(1, index)
        return index, weight / weight.sum(-1, keepdim=True)


def report_of(model: nn.Module, *inputs: Tensor):
    compiled, reports = compile_observed(model)
    compiled(*inputs)
    return reports[0]


def test_a_router_is_named_by_its_operations_and_its_matrix() -> None:
    report = report_of(Routed(), torch.randn(5, 16))
    assert report.router == "topk <- softmax <- mm"
    assert report.router_weight == "gate.weight"


def test_what_only_the_choice_depends_on_is_part_of_the_router() -> None:
    report = report_of(BiasedChoice(), torch.randn(5, 16))
    assert report.router == "div <- sum <- gather <- topk <- add <- sigmoid <- mm"
    assert report.router_weight == "gate.weight"


def test_a_long_chain_is_shortened() -> None:
    class Long(Routed):
        def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(20):
                scores = scores.tanh()
            return super().choose(scores)

    report = report_of(Long(), torch.randn(5, 16))
    assert report.router.endswith("tanh <- ... <- mm")
    assert report.router.count("<-") == 12


def test_a_marker_is_no_part_of_the_router() -> None:
    model = modes_fx.attach(blocks.TinyModel(blocks.Routed(blocks.IndexAddLoop())))
    report = report_of(model, *blocks.prompt().values())
    assert report.form == "loop"
    assert report.router == "topk <- softmax <- mm"
    assert report.router_weight == "layer.router.weight"


def test_routing_that_enters_the_graph_from_outside_has_no_operations() -> None:
    report = report_of(GroupedExperts(), *routed_tokens())
    assert (report.router, report.router_weight) == ("", "")
