"""The gathered dispatch: every row with its own copy of its expert's matrix."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.tiny import compile_observed, routed_tokens


class GatheredExperts(nn.Module):
    """Two stacked matrices, transposed or not, gathered for every row."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = ((6, 8, 16), (6, 16, 8)) if transposed else ((6, 16, 8), (6, 8, 16))
        self.up, self.down = (
            nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
        )
        self.transposed = transposed

    def forward(self, x, index, weight):
        top_k = index.shape[1]
        chosen = index.reshape(-1)
        rows = self.linear(x.repeat_interleave(top_k, dim=0), self.up[chosen]).relu()
        rows = self.linear(rows, self.down[chosen]) * weight.reshape(-1)[:, None]
        return rows.view(len(x), top_k, -1).sum(1)

    def linear(self, rows, matrices):
        if self.transposed:
            return torch.bmm(matrices, rows[:, :, None]).squeeze(-1)
        return torch.bmm(rows[:, None], matrices).squeeze(1)


@pytest.mark.parametrize("transposed", [True, False])
def test_gathered_experts_are_rewritten(transposed) -> None:
    torch.compiler.reset()
    model, inputs = GatheredExperts(transposed), routed_tokens()
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert [(report.status, report.form) for report in reports] == [("rewritten", "batched_mm")]


class Adapters(nn.Module):
    """A bank of low-rank adapters ``A [N, r, H]``, ``B [N, H, r]``, gathered for every token."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(6, 4, 16, generator=generator))
        self.b = nn.Parameter(torch.randn(6, 16, 4, generator=generator))

    def forward(self, x, adapter):
        rows = torch.bmm(self.a[adapter], x[..., None])
        return x + torch.bmm(self.b[adapter], rows).squeeze(-1)


class AddedAdapters(Adapters):
    """Several adapters for every token, added up as they are."""

    def forward(self, x, adapters):
        (tokens, number), chosen = adapters.shape, adapters.view(-1)
        rows = x.repeat_interleave(number, dim=0)[..., None]
        rows = torch.bmm(self.b[chosen], torch.bmm(self.a[chosen], rows))
        return x + rows.view(tokens, number, -1).sum(1)


@pytest.mark.parametrize(
    ("model", "chosen", "reason"),
    [
        (Adapters(), 0, "does not come from an integer matrix"),
        (AddedAdapters(), slice(None), "combine weights of the experts were not found"),
    ],
)
def test_adapters_are_not_experts(model, chosen, reason) -> None:
    torch.compiler.reset()
    x, index, _ = routed_tokens()
    adapters = index[:, chosen].contiguous()
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        assert_close(compiled(x, adapters), model(x, adapters), rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused"]
    assert reason in reports[0].reason


def test_attention_like_products_of_activations_are_not_experts() -> None:
    torch.compiler.reset()
    compiled, reports = compile_observed(lambda q, k: torch.bmm(q, k[torch.tensor([1, 0])]))
    with torch.no_grad():
        compiled(torch.randn(2, 3, 4).sin(), torch.randn(2, 4, 3).sin())
    assert reports == []
