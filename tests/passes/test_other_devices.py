"""Experts spread over devices: the gate compares shares of all weights, not of this device's."""

import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig

import modes_fx
from modes_fx.attach import set_thetas
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.tiny import GroupedExperts, compile_observed, routed_tokens

HELD = 3  # of 6 experts; the others are another device's


class Held(GroupedExperts):
    """The first experts of a layer; sums to be added to those of the other device."""

    def __init__(self) -> None:
        super().__init__(experts=HELD)

    def forward(self, x, index, weight):
        ordered, perm = torch.sort(index.reshape(-1))
        elsewhere = (ordered >= HELD)[:, None]
        offsets = self.counts(ordered).cumsum(0, dtype=torch.int32)
        rows = self.grouped(x[perm // index.shape[1]], self.up, offsets)
        rows = self.activation(rows.masked_fill(elsewhere, 0.0))
        rows = self.grouped(rows, self.down, offsets).masked_fill(elsewhere, 0.0)
        rows = self.weighted(rows, weight.reshape(-1)[perm])
        return self.combine(self.restore(rows, perm).view(*index.shape, -1))


class Model(nn.Module):
    """A layer that masks the choice of experts to those this device holds."""

    config = PretrainedConfig()

    def __init__(self) -> None:
        super().__init__()
        self.experts = Held()

    def forward(self, input_ids, x, index, weight):
        elsewhere = index // HELD != 0
        return self.experts(x, *self.masked(index, weight, elsewhere))

    def masked(self, index, weight, elsewhere):
        return torch.where(elsewhere, HELD, index % HELD), weight.masked_fill(elsewhere, 0.0)


def test_shares_are_those_of_all_devices() -> None:
    x, index, weight = routed_tokens(tokens=16, top_k=4)
    ids = torch.zeros(1, 16, dtype=torch.long)
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.TEXT] = 0.25
    kept, _ = reference.gate(
        index, weight, torch.zeros(16, dtype=torch.int8), theta, 6, "renormalised"
    )
    model = Model()
    original = model(ids, x, index, weight)
    expected = model(ids, x, index, weight.masked_fill(kept == 6, 0))
    compiled, reports = compile_observed(modes_fx.attach(model, count_pairs=True), strict=True)
    assert_close(compiled(ids, x, index, weight), original, rtol=1e-5, atol=1e-5)
    set_thetas(model, {"experts": theta})
    modes_fx.pair_counts(model, reset=True)
    assert_close(compiled(ids, x, index, weight), expected, rtol=1e-5, atol=1e-5)
    skipped = int((kept == 6).sum())
    assert 16 < skipped < 48
    counted = modes_fx.pair_counts(model)["experts"][Modality.TEXT]
    assert counted.tolist() == [64, 64 - skipped]
    assert [report.gated for report in reports] == [True]


class OddlyMasked(Model):
    """Masks weights in a way that does not show what they were."""

    def masked(self, index, weight, elsewhere):
        return torch.where(elsewhere, HELD, index % HELD), weight * ~elsewhere


def test_masked_weights_that_cannot_be_undone_are_refused() -> None:
    inputs = (torch.zeros(1, 5, dtype=torch.long), *routed_tokens())
    model = OddlyMasked()
    expected = model(*inputs)
    compiled, reports = compile_observed(modes_fx.attach(model))
    assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused"]
    assert "a share would be one of this device's alone" in reports[0].reason
