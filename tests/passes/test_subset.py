"""Blocks that give their experts a part of the tokens: each row keeps its own modality."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PretrainedConfig

import modes_fx
from modes_fx.attach import set_thetas
from modes_fx.backend import modes_backend
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.tiny import GroupedExperts, compile_observed

HIDDEN = 16


class RoutedExperts(GroupedExperts):
    """Grouped experts with their router, for rows ``[n, H]``."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(self.num_experts, HIDDEN))

    def forward(self, x):
        weight, index = (x @ self.router.T).softmax(-1).topk(2, dim=-1)
        return super().forward(x, index, weight)


class ByRowMask(nn.Module):
    """``x[mask]``: half of the tokens to experts of their own, the others to others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = RoutedExperts(), RoutedExperts()

    def forward(self, x, mask):
        out = torch.zeros_like(x)
        out[~mask] = self.first(x[~mask])
        out[mask] = self.second(x[mask])
        return out

    def rows(self, mask):
        """The positions of the tokens that each of the two experts see, in their order."""
        return (~mask).flatten().nonzero()[:, 0], mask.flatten().nonzero()[:, 0]


class ByElementMask(ByRowMask):
    """A mask of every element, which flattens what it picks."""

    def forward(self, x, mask):
        out = torch.zeros_like(x)
        mask = mask[..., None].expand_as(x)
        out[~mask] = self.first(x[~mask].view(-1, HIDDEN)).flatten()
        out[mask] = self.second(x[mask].view(-1, HIDDEN)).flatten()
        return out


class ByPosition(ByRowMask):
    """The positions of a mask, picked from flattened tokens and added back."""

    def forward(self, x, mask):
        tokens = x.view(-1, HIDDEN)
        out = torch.zeros_like(tokens)
        for experts, chosen in ((self.first, ~mask), (self.second, mask)):
            where = chosen.flatten().nonzero().squeeze(1)
            out = out.index_add(0, where, experts(tokens.index_select(0, where)))
        return out.view_as(x)


class BySorting(ByRowMask):
    """All tokens, but in another order: no count tells that their modality moves along."""

    def forward(self, x, mask):
        order = torch.argsort(mask.flatten().int(), stable=True)
        tokens = x.view(-1, HIDDEN)[order]
        half = tokens.shape[0] // 2
        parts = self.first(tokens[:half]), self.second(tokens[half:])
        return torch.cat(parts)[order.argsort()].view_as(x)

    def rows(self, mask):
        order = torch.argsort(mask.flatten().int(), stable=True)
        return order[: len(order) // 2], order[len(order) // 2 :]


class Model(nn.Module):
    """One such block in a list of layers."""

    config = PretrainedConfig()

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block])

    def forward(self, input_ids, x, mask):
        return self.layers[0](x, mask)


def a_call(length: int, seed: int = 0):
    """Tokens, the mask of the second experts' tokens, and modalities that are not the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask, vision = torch.rand(2, 2, length, generator=generator) < 0.5
    return torch.randn(2, length, HIDDEN, generator=generator), mask, vision.long()


def thresholds() -> torch.Tensor:
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.TEXT], theta[Modality.VISION] = 0.3, 0.6
    return theta


def expected_skipping(block: ByRowMask, x, mask, modality):
    """The block in eager mode, with skipped pairs weighted 0, and how many there are."""
    skipped = []

    class Weighted:
        def __init__(self, experts, rows):
            self.experts, self.codes = experts, modality.flatten()[rows]

        def __call__(self, x):
            weight, index = (x @ self.experts.router.T).softmax(-1).topk(2, dim=-1)
            kept, _ = reference.gate(index, weight, self.codes, thresholds(), 6, "renormalised")
            skipped.append(kept == 6)
            return GroupedExperts.forward(self.experts, x, index, weight.masked_fill(kept == 6, 0))

    first, second = block.rows(mask)
    eager = type(block)()
    del eager.first, eager.second
    eager.first, eager.second = Weighted(block.first, first), Weighted(block.second, second)
    return eager(x, mask), torch.cat(skipped).float().mean()


@pytest.mark.parametrize("style", [ByRowMask, ByElementMask, ByPosition, BySorting])
def test_every_row_is_gated_by_its_own_modality(style) -> None:
    model = Model(style())
    eager = style()
    eager.load_state_dict(model.layers[0].state_dict())
    modes_fx.attach(model)
    compiled, reports = compile_observed(model, strict=True)
    for length in (5, 8):
        x, mask, modality = a_call(length)
        ids = torch.zeros_like(modality)
        kept = compiled(ids, x, mask, modality=modality)
        assert_close(kept, eager(x, mask), rtol=1e-5, atol=1e-5)
    set_thetas(model, {f"layers.0.{name}": thresholds() for name in ("first", "second")})
    for length in (5, 8):
        x, mask, modality = a_call(length, seed=1)
        expected, skipped = expected_skipping(eager, x, mask, modality)
        got = compiled(torch.zeros_like(modality), x, mask, modality=modality)
        assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert 0.2 < skipped < 0.8
    assert {(report.path, report.gated) for report in reports} == {
        ("layers.0.first", True),
        ("layers.0.second", True),
    }


def test_inductor_computes_the_same_and_no_rows_are_fine_too() -> None:
    model = Model(ByElementMask())
    eager = ByElementMask()
    eager.load_state_dict(model.layers[0].state_dict())
    modes_fx.attach(model)
    compiled = torch.compile(model, backend=modes_backend, options={"strict": True})
    set_thetas(model, {f"layers.0.{name}": thresholds() for name in ("first", "second")})
    for chosen in (None, False, True):
        x, mask, modality = a_call(6)
        mask = mask if chosen is None else torch.full_like(mask, chosen)
        got = compiled(torch.zeros_like(modality), x, mask, modality=modality)
        expected, _ = expected_skipping(eager, x, mask, modality)
        assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class ByOddElements(ByRowMask):
    """Picks elements; as many as whole rows would have."""

    def forward(self, x, mask):
        odd = torch.arange(HIDDEN) % 2 == 1
        picked = x[odd.expand_as(x)].view(-1, HIDDEN)
        return self.first(picked).sum() + self.second(picked).sum()


class ByChangedRows(ByRowMask):
    """Computes with the rows between picking them and its experts."""

    def forward(self, x, mask):
        several = x[mask].cos()
        return self.first(several).sum() + self.second(several).sum()


@pytest.mark.parametrize(
    ("style", "reason"),
    [
        (ByOddElements, "see picked values, not whole rows"),
        (ByChangedRows, "depends on data, and the rows they were picked from are not"),
    ],
)
def test_rows_that_cannot_be_followed_are_refused(style, reason) -> None:
    model = Model(style())
    x, mask, modality = a_call(6)
    expected = model.layers[0](x, mask)
    compiled, reports = compile_observed(modes_fx.attach(model))
    got = compiled(torch.zeros_like(modality), x, mask, modality=modality)
    assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused", "refused"]
    assert reason in reports[0].reason
