"""Accuracy counts exact matches; routers can be cut down and come back whole."""

import pytest
import torch
from torch import nn

from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, reduced_experts
from modes_fx.bench.demo_model.questions import Question


class Router(nn.Module):
    """Gives every token the weights 0.5, 0.3 and 0.2."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = torch.tensor([0.5, 0.3, 0.2]).expand(len(x), 3)
        return x, weights, torch.arange(3).expand(len(x), 3)


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict({"mlp": nn.ModuleDict({"gate": Router()})})


@pytest.mark.parametrize(
    ("keep", "renormalise", "expected"),
    [
        (3, False, [0.5, 0.3, 0.2]),
        (1, False, [0.5, 0.0, 0.0]),
        (2, True, [0.625, 0.375, 0.0]),
        (0, False, [0.0, 0.0, 0.0]),
    ],
)
def test_only_the_most_weighted_experts_keep_their_weight(
    model, keep: int, renormalise: bool, expected: list[float]
) -> None:
    outer = nn.ModuleDict({"layer": model})
    router = model["mlp"]["gate"]
    with reduced_experts(outer, keep, renormalise=renormalise):
        _, weights, _ = router(torch.zeros(2, 4))
    torch.testing.assert_close(weights, torch.tensor([expected, expected]))
    assert router(torch.zeros(1, 4))[1].tolist() == [pytest.approx([0.5, 0.3, 0.2])]


def test_accuracy_counts_exact_matches_by_kind_and_modality() -> None:
    questions = [Question("plus", "", "7"), Question("plus", "", "8"), Question("sort", "", "1 2")]
    accuracy = accuracy_by_kind(questions, ["7", "7", " 1 2 "])
    assert accuracy == {"all": 2 / 3, "text": 2 / 3, "plus": 0.5, "sort": 1.0}
