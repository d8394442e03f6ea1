"""Lifting: whatever the experts compute between their GEMMs becomes part of the body."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.activations import ACT2FN

from tests.tiny import GroupedExperts, compile_observed, routed_tokens

OTHERS = {
    "celu": nn.CELU(0.5),
    "hardsigmoid": nn.Hardsigmoid(),
    "selu": nn.SELU(),
    "softshrink": nn.Softshrink(),
    "tanhshrink": nn.Tanhshrink(),
    "threshold": nn.Threshold(0.1, -1.0),
    "one_slope_per_feature": nn.PReLU(8),
}


class Activated(GroupedExperts):
    """Gated experts with any activation, learned ones included."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act.float()

    def activation(self, rows):
        gate, up = rows.chunk(2, dim=-1)
        return self.act(gate) * up


def reports_on(model: nn.Module, tokens: int, top_k: int):
    """The reports on a compiled model, whose output is always right."""
    torch.compiler.reset()
    inputs = routed_tokens(tokens=tokens, top_k=top_k)
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        expected = model(*inputs)
        atol = 1e-5 * float(expected.abs().max().clamp_min(1))
        assert_close(compiled(*inputs), expected, rtol=0, atol=atol)
    return [(report.status, report.reason) for report in reports]


@pytest.mark.parametrize("name", [*ACT2FN, *OTHERS])
def test_every_activation_is_lifted(name) -> None:
    model = Activated(OTHERS[name] if name in OTHERS else ACT2FN[name])
    assert reports_on(model, tokens=5, top_k=2) == [("rewritten", "")]


def test_a_learned_slope_is_not_taken_for_the_only_token_or_its_weight() -> None:
    assert reports_on(Activated(nn.PReLU()), tokens=1, top_k=1) == [("rewritten", "")]
