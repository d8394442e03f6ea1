"""Whole graphs through the passes: what is rewritten, what is refused, and that both are right."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig

import modes_fx
from modes_fx.passes.report import NearestMiss
from tests.tiny import GroupedExperts, compile_observed, routed_tokens


def through_the_passes(model: nn.Module, *inputs):
    """The compiled model's output and its only layer's report; the output is always right."""
    expected = model(*inputs)
    compiled, reports = compile_observed(model)
    assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert len(reports) == 1
    return reports[0]


def test_written_out_grouped_experts_are_rewritten() -> None:
    report = through_the_passes(GroupedExperts(), *routed_tokens())
    assert report.status == "rewritten"
    assert report.form == "grouped_mm"
    assert (report.num_experts, report.top_k) == (6, 2)
    assert (report.hidden_size, report.intermediate_size) == (16, 8)
    assert report.max_error < 1e-5


def test_one_expert_per_token() -> None:
    assert through_the_passes(GroupedExperts(), *routed_tokens(top_k=1)).status == "rewritten"


def test_one_token() -> None:
    assert through_the_passes(GroupedExperts(), *routed_tokens(tokens=1)).status == "rewritten"


class Clamped(GroupedExperts):
    """Interleaved gate and up, clamps, an offset: as some models have it."""

    def activation(self, rows):
        gate, up = rows[..., ::2].clamp(max=7.0), rows[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def test_another_activation_needs_no_new_code() -> None:
    report = through_the_passes(Clamped(), *routed_tokens())
    assert report.status == "rewritten"
    assert "sigmoid" in report.body


class BiasedExperts(GroupedExperts):
    """A bias for each expert, gathered row by row, added to the down projection."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(6, 16))

    def forward(self, x, index, weight):
        top_k = index.shape[1]
        ordered, perm = torch.sort(index.reshape(-1))
        counts = torch.histc(ordered.float(), self.num_experts, 0, self.num_experts - 1)
        offsets = counts.cumsum(0, dtype=torch.int32)
        rows = self.activation(self.grouped(x[perm // top_k], self.up, offsets))
        rows = self.grouped(rows, self.down, offsets) + self.bias[ordered]
        rows = self.weighted(rows, weight.reshape(-1)[perm])
        return self.combine(self.restore(rows, perm).view(len(x), top_k, -1))


def test_biases_are_part_of_the_body() -> None:
    torch.manual_seed(0)
    report = through_the_passes(BiasedExperts(), *routed_tokens())
    assert report.status == "rewritten"
    assert "add" in report.body


class NormalisedExperts(GroupedExperts):
    """A norm of each expert's output, with a scale of ``1 + offset``."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(16))

    def weighted(self, rows, weight):
        scaled = rows * (1.0 + self.offset)
        norm = scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + 1e-6)
        return super().weighted(norm, weight)


def test_vectors_computed_from_parameters_are_part_of_the_body() -> None:
    torch.manual_seed(0)
    report = through_the_passes(NormalisedExperts(), *routed_tokens())
    assert report.status == "rewritten"
    assert "rsqrt" in report.body


class Unrestored(GroupedExperts):
    """Forgets to undo the sorting: alike to the last node, but another function."""

    def restore(self, rows, perm):
        return rows[perm]


def test_a_look_alike_with_other_numbers_is_refused() -> None:
    report = through_the_passes(Unrestored(), *routed_tokens())
    assert report.status == "refused"
    assert "gives other numbers" in report.reason
    assert str(report.nearest_miss) == "grouped_mm came furthest, failed at: proof"


class Averaged(GroupedExperts):
    """Combines by the mean, not the sum."""

    def combine(self, rows):
        return rows.mean(1)


def test_another_combine_is_refused() -> None:
    report = through_the_passes(Averaged(), *routed_tokens())
    assert report.status == "refused"
    assert "no sum over the 2 experts" in report.reason


class AcrossRows(GroupedExperts):
    """Mixes rows, so an expert's output depends on other tokens."""

    def activation(self, rows):
        return super().activation(rows).cumsum(0)


def test_experts_that_mix_tokens_are_refused() -> None:
    report = through_the_passes(AcrossRows(), *routed_tokens())
    assert report.status == "refused"
    assert "cumsum" in report.reason
    assert report.nearest_miss == NearestMiss("grouped_mm", "cut", node="cumsum_1")


class Leaky(GroupedExperts):
    """Shows its intermediate rows to the outside."""

    def forward(self, x, index, weight):
        self.seen = None
        return super().forward(x, index, weight) + self.seen

    def activation(self, rows):
        rows = super().activation(rows)
        self.seen = rows.sum()
        return rows


def test_values_read_outside_the_region_are_refused() -> None:
    report = through_the_passes(Leaky(), *routed_tokens())
    assert report.status == "refused"
    assert "read outside the region" in report.reason


class Unweighted(GroupedExperts):
    """Sums the experts without combine weights."""

    def weighted(self, rows, weight):
        return rows


def test_experts_without_combine_weights_are_refused() -> None:
    report = through_the_passes(Unweighted(), *routed_tokens())
    assert report.status == "refused"
    assert "combine weights" in report.reason


def test_weights_on_the_experts_input_are_followed() -> None:
    class WeightedInput(GroupedExperts):
        def forward(self, x, index, weight):
            top_k = index.shape[1]
            ordered, perm = torch.sort(index.reshape(-1))
            counts = torch.histc(ordered.float(), self.num_experts, 0, self.num_experts - 1)
            offsets = counts.cumsum(0, dtype=torch.int32)
            rows = x[perm // top_k] * weight.reshape(-1)[perm][:, None]
            rows = self.activation(self.grouped(rows, self.up, offsets))
            rows = self.grouped(rows, self.down, offsets)
            return self.combine(self.restore(rows, perm).view(len(x), top_k, -1))

    report = through_the_passes(WeightedInput(), *routed_tokens())
    assert report.status == "rewritten"
    assert report.body.startswith("mul matmul")


def test_experts_in_an_unknown_form_are_reported_without_a_marker_too() -> None:
    class Dense(GroupedExperts):
        def forward(self, x, index, weight):
            rows = self.activation(x @ self.up.transpose(1, 2)) @ self.down.transpose(1, 2)
            return rows.mean(0)

    report = through_the_passes(Dense(), *routed_tokens())
    assert report.status == "refused"
    assert "in a way that no pattern knows" in report.reason
    assert str(report.nearest_miss) == "no pattern applies, failed at: find (node transpose)"


def test_a_graph_without_experts_is_left_alone() -> None:
    model = nn.Linear(4, 4)
    compiled, reports = compile_observed(model)
    x = torch.randn(2, 4)
    assert_close(compiled(x), model(x))
    assert reports == []


class EmbeddingBags(nn.Module):
    """Weighted sums of rows of a table, as many as a bag holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(6, 16, mode="sum")
        self.plain = nn.Embedding(6, 16)

    def forward(self, x, index, weight):
        by_hand = (self.plain(index) * weight[..., None]).sum(1)
        return x + self.table(index, per_sample_weights=weight) + by_hand


class ProductKeyMemory(nn.Module):
    """Looks values up by the best pairs of two halves of a key."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(2, 4, 8))
        self.values = nn.Embedding(16, 16)

    def forward(self, x, index, weight):
        scores = torch.bmm(x.view(-1, 2, 8).transpose(0, 1), self.keys.transpose(1, 2))
        (first, second), (i, j) = scores.topk(2, dim=-1)
        pairs = (first[..., None] + second[:, None]).flatten(1)
        slots = (i[..., None] * 4 + j[:, None]).flatten(1)
        best, position = pairs.topk(2, dim=-1)
        values = self.values(slots.gather(1, position))
        return (values * best.softmax(-1)[..., None]).sum(1)


class SamplingHead(nn.Module):
    """Keeps the most likely words and renormalises."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 32)

    def forward(self, x, index, weight):
        logits = self.head(x)
        top, words = logits.topk(4, dim=-1)
        kept = torch.full_like(logits, -torch.inf).scatter(1, words, top)
        return kept.softmax(-1) @ self.head.weight


@pytest.mark.parametrize("kind", [EmbeddingBags, ProductKeyMemory, SamplingHead])
def test_other_lookups_are_left_untouched(kind) -> None:
    torch.manual_seed(0)
    model, inputs = kind(), routed_tokens()
    compiled, reports = compile_observed(model)
    assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert reports == []


def test_thresholds_that_do_not_reach_their_layer_are_reported() -> None:
    class ScaledInput(GroupedExperts):
        def forward(self, x, index, weight):
            return super().forward(x * 2, index, weight)

    class Model(nn.Module):
        config = PretrainedConfig()

        def __init__(self) -> None:
            super().__init__()
            self.experts = ScaledInput()

        def forward(self, input_ids, x, index, weight):
            return self.experts(x, index, weight)

    model = modes_fx.attach(Model())
    compiled, reports = compile_observed(model)
    compiled(torch.zeros(1, 5, dtype=torch.long), *routed_tokens())
    assert [(r.path, r.status, r.gated) for r in reports] == [
        ("experts", "rewritten", False),
        ("experts", "refused", False),
    ]
    assert "do not read the marked input itself" in reports[1].reason


class Layer(nn.Module):
    """Experts that see what was computed from the last of the call's tokens, or from all."""

    config = PretrainedConfig()

    def __init__(self, first: int) -> None:
        super().__init__()
        self.experts, self.first = GroupedExperts(), first

    def forward(self, input_ids, x, index, weight):
        first = self.first
        return self.experts(x[first:].cos(), index[first:], weight[first:])


def test_experts_that_see_a_part_of_the_tokens_are_refused() -> None:
    model = modes_fx.attach(Layer(first=2))
    compiled, reports = compile_observed(model)
    inputs = (torch.zeros(1, 5, dtype=torch.long), *routed_tokens())
    expected = model(*inputs)
    assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused"]
    assert "its experts see 3 tokens while the call has 5" in reports[0].reason
    assert reports[0].nearest_miss == NearestMiss("grouped_mm", "gate")


def test_layers_that_differ_in_a_constant_are_proved_separately() -> None:
    class Miscounting(GroupedExperts):
        def __init__(self, highest: int) -> None:
            super().__init__()
            self.highest = highest

        def counts(self, ordered):
            return torch.histc(ordered.float(), self.num_experts, 0, self.highest)

    model = nn.ModuleList([Miscounting(5), Miscounting(11)])

    def both(x, index, weight):
        return model[0](x, index, weight), model[1](x, index, weight)

    inputs = routed_tokens()
    compiled, reports = compile_observed(both)
    assert_close(compiled(*inputs), both(*inputs), rtol=1e-5, atol=1e-5)
    assert sorted(report.status for report in reports) == ["refused", "rewritten"]


def test_a_look_alike_is_not_accepted_on_a_lucky_draw() -> None:
    for tokens in (2, 3):
        torch.compiler.reset()
        model = Unrestored()
        compiled, reports = compile_observed(model)
        inputs = routed_tokens(tokens=tokens, top_k=2)
        assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
        assert reports[0].status == "refused"


def test_an_activation_from_outside_is_no_parameter() -> None:
    class Scaled(GroupedExperts):
        def forward(self, x, index, weight, scale):
            self.scale = scale
            return super().forward(x, index, weight)

        def weighted(self, rows, weight):
            return super().weighted(rows * self.scale, weight)

    report = through_the_passes(Scaled(), *routed_tokens(), torch.rand(10, 1))
    assert report.status == "refused"
    assert "neither x, weight nor a parameter" in report.reason
