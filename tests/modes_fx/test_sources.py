"""Layers of a tower and of a decoder are told apart from those that see the call's tokens."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

import modes_fx
from modes_fx import Modality
from modes_fx.sources import find_decoder_layers, find_tower_layers
from tests.tiny import GroupedExperts, compile_observed, routed_tokens

PATCHES, WORDS = 7, 5


class Tower(PreTrainedModel):
    """An image tower and a text layer, both with experts."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(8, 16)
        self.vision_tower = nn.ModuleDict({"experts": GroupedExperts()})
        self.experts = GroupedExperts()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """``input_ids`` [1, S], ``pixel_values`` [P, H] -> [1]."""
        _, index, weight = routed_tokens(tokens=PATCHES)
        seen = self.vision_tower["experts"](pixel_values, index, weight)
        x, index, weight = routed_tokens(tokens=input_ids.shape[1])
        return self.experts(x, index, weight).sum() + seen.sum()


class OneEncoder(Tower):
    """Says that its encoder of tokens is the encoder of every modality."""

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self


class SaysNothing(Tower):
    """Does not say where its tokens enter."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


class WithoutTower(Tower):
    """Has places for towers, and nothing there."""

    def get_encoder(self, modality: str | None = None) -> nn.Module | None:
        return None if modality else self


class WithInnerEncoder(Tower):
    """Names a part that embeds tokens for every modality it has no tower of."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.encoder = nn.ModuleDict({"embeddings": self.embeddings, "experts": GroupedExperts()})

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.encoder if modality else self


class Plain(nn.Module):
    """No transformers model."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_every_row_in_an_image_tower_is_vision() -> None:
    torch.compiler.reset()
    model = Tower(PretrainedConfig()).eval()
    layers = {name: module for name, module in model.named_modules() if "experts" in name}
    assert find_tower_layers(model, layers) == {"vision_tower.experts": Modality.VISION}
    modes_fx.attach(model, count_pairs=True)
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        compiled(torch.arange(WORDS)[None], torch.randn(PATCHES, 16))
    assert [report.status for report in reports] == ["rewritten"] * 2
    counts = modes_fx.pair_counts(model)
    assert counts["vision_tower.experts"][:, 0].tolist() == [0, 2 * PATCHES, 0, 0, 0]
    assert counts["experts"][:, 0].tolist() == [2 * WORDS, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", [OneEncoder, WithInnerEncoder, SaysNothing, WithoutTower])
def test_a_part_that_reads_tokens_is_no_tower_nor_is_an_empty_place(kind) -> None:
    model = kind(PretrainedConfig())
    layers = {name: module for name, module in model.named_modules() if "experts" in name}
    assert find_tower_layers(model, layers) == {}


def test_other_models_have_neither() -> None:
    model = Plain()
    assert find_tower_layers(model, {"": model}) == {}
    assert find_decoder_layers(model, {"": model}) == set()
