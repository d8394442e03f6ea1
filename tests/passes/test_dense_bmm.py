"""The dense dispatch: every token through every expert, weighted by 0 where not chosen."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig

import modes_fx
from modes_fx.attach import keep_all_theta, set_thetas
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.tiny import compile_observed

EXPERTS, HIDDEN, WIDTH, TOP_K = 6, 16, 8, 2


def sigmoid_of_chosen(logits):
    top, index = logits.topk(TOP_K, dim=1)
    return torch.full_like(logits, -torch.inf).scatter_(1, index, top).sigmoid()


def scattered_softmax(logits):
    weight, index = logits.softmax(-1).topk(TOP_K, dim=-1)
    return torch.zeros_like(logits).scatter(1, index, weight / weight.sum(-1, keepdim=True))


def times_mask(logits):
    mask = torch.zeros_like(logits).scatter(-1, logits.topk(TOP_K).indices, 1.0)
    weight = logits.softmax(-1) * mask
    return weight / weight.sum(-1, keepdim=True)


def masked_fill(logits):
    mask = torch.zeros_like(logits).scatter_(1, logits.topk(TOP_K).indices, 1)
    return logits.softmax(-1).masked_fill(~mask.bool(), 0.0)


def softmax_of_masked(logits):
    mask = torch.zeros_like(logits).scatter(1, logits.argsort(descending=True)[:, :1], 1)
    return torch.where(mask > 0, logits, -torch.inf).softmax(-1)


SCORES = (sigmoid_of_chosen, scattered_softmax, times_mask, masked_fill, softmax_of_masked)


class DenseExperts(nn.Module):
    """Stacked experts that all see all rows ``[E * T, H]``, as they come."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * WIDTH, generator=generator))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator))

    def forward(self, rows):
        gate, up = torch.bmm(rows.view(EXPERTS, -1, HIDDEN), self.up).chunk(2, dim=-1)
        rows = torch.bmm(nn.functional.silu(gate) * up, self.down.transpose(1, 2))
        return rows.view(-1, HIDDEN)


class WeightedInput(nn.Module):
    """The combine weights are on what the experts read."""

    config = PretrainedConfig()

    def __init__(self, scores=sigmoid_of_chosen) -> None:
        super().__init__()
        self.experts, self.scores = DenseExperts(), scores
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.router.weight.copy_(
            torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, input_ids, x):
        x = x.reshape(-1, HIDDEN)
        return self.combined(x, self.scores(self.router(x)))

    def combined(self, x, scores):
        rows = x.repeat(EXPERTS, 1) * scores.transpose(0, 1).reshape(-1, 1)
        return self.experts(rows).reshape(EXPERTS, -1, HIDDEN).sum(dim=0)


class WeightedOutput(WeightedInput):
    """The combine weights are on what the experts give."""

    def combined(self, x, scores):
        rows = self.experts(x[None].expand(EXPERTS, -1, -1).reshape(-1, HIDDEN))
        rows = rows.view(EXPERTS, -1, HIDDEN) * scores.T[..., None]
        return rows.permute(1, 0, 2).sum(1)


def call(batch: int = 1, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` [B, S] and ``x`` [B, S, H]."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, length, HIDDEN, generator=generator)
    return torch.ones(batch, length, dtype=torch.long), x


def through_the_passes(model: nn.Module, *inputs):
    """The reports on a compiled model, whose output is always right."""
    compiled, reports = compile_observed(model)
    assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    return reports


@pytest.mark.parametrize("weighted", [WeightedInput, WeightedOutput])
@pytest.mark.parametrize("scores", SCORES)
def test_only_the_chosen_experts_are_computed(weighted, scores) -> None:
    (report,) = through_the_passes(weighted(scores), *call())
    assert (report.status, report.form) == ("rewritten", "dense_bmm"), report.reason
    assert report.top_k == (1 if scores is softmax_of_masked else TOP_K)
    assert report.body.startswith("mul") is (weighted is WeightedInput)


@pytest.mark.parametrize("shape", [(1, 1), (1, EXPERTS), (3, 4)])
def test_any_number_of_tokens(shape) -> None:
    (report,) = through_the_passes(WeightedInput(), *call(*shape))
    assert report.status == "rewritten", report.reason


@pytest.mark.parametrize("weighted", [WeightedInput, WeightedOutput])
def test_thresholds_reach_experts_whose_input_holds_every_token_once_per_expert(weighted) -> None:
    theta = keep_all_theta()
    theta[Modality.TEXT] = 0.45

    def without_small_weights(logits):
        scores = sigmoid_of_chosen(logits)
        skipped = reference.routing_share(scores, "renormalised") < 0.45
        return scores.masked_fill(skipped, 0)

    inputs = call(length=9)
    full, skipped = weighted()(*inputs), weighted(without_small_weights)(*inputs)
    assert not torch.allclose(full, skipped, atol=1e-2)
    model = modes_fx.attach(weighted(), count_pairs=True)
    compiled, reports = compile_observed(model, strict=True)
    assert_close(compiled(*inputs), full, rtol=1e-5, atol=1e-5)
    assert [(report.path, report.gated) for report in reports] == [("experts", True)]
    set_thetas(model, {"experts": theta})
    modes_fx.pair_counts(model, reset=True)
    assert_close(compiled(*inputs), skipped, rtol=1e-5, atol=1e-5)
    pairs, kept = modes_fx.pair_counts(model)["experts"][Modality.TEXT].tolist()
    assert pairs == 9 * TOP_K
    assert 9 <= kept < pairs


def test_weights_that_are_not_zero_for_the_others_are_refused() -> None:
    def half_for_the_others(logits):
        top, index = logits.topk(TOP_K, dim=1)
        return torch.zeros_like(logits).scatter(1, index, top).sigmoid()

    (report,) = through_the_passes(WeightedInput(half_for_the_others), *call())
    assert report.status == "refused"
    assert "experts that were not chosen are 0.5, not 0" in report.reason


def test_experts_that_give_something_for_nothing_are_refused() -> None:
    class Biased(WeightedInput):
        def combined(self, x, scores):
            rows = x.repeat(EXPERTS, 1) * scores.transpose(0, 1).reshape(-1, 1)
            return self.experts(rows + 1).reshape(EXPERTS, -1, HIDDEN).sum(dim=0)

    (report,) = through_the_passes(Biased(), *call())
    assert report.status == "refused"
    assert "gives other numbers" in report.reason


def softmax_over_all(logits):
    return logits.softmax(-1)


def chosen_twice(logits):
    index = logits.topk(TOP_K).indices // 2
    return torch.zeros_like(logits).scatter(1, index, logits.softmax(-1))


def too_small_to_see(logits):
    top, index = logits.topk(TOP_K, dim=1)
    return torch.full_like(logits, -30.0).scatter(1, index, top).softmax(-1)


@pytest.mark.parametrize("scores", [softmax_over_all, chosen_twice, too_small_to_see])
def test_without_a_choice_of_different_experts_nothing_is_rewritten(scores) -> None:
    (report,) = through_the_passes(WeightedInput(scores), *call())
    assert report.status == "refused"
    assert "in a way that no pattern knows" in report.reason


def test_attention_with_stacked_projections_is_not_experts() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (
                nn.Parameter(torch.randn(4, HIDDEN, HIDDEN) / 4) for _ in range(4)
            )

        def forward(self, x):
            q, k, v = (torch.bmm(x.expand(4, -1, -1), w) for w in (self.q, self.k, self.v))
            rows = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
            return torch.bmm(rows, self.o).sum(0)

    reports = through_the_passes(Attention(), torch.randn(1, 5, HIDDEN))
    assert [report.status for report in reports] == ["refused"]
    assert "in a way that no pattern knows" in reports[0].reason
