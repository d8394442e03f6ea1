"""Seeing and changing the pairs of an unmodified model."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx import SkipPolicy
from modes_fx.attach import find_expert_modules
from modes_fx.calibration.data import token_codes
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.pairs import (
    experts_hit,
    hooked_pairs,
    recorded_experts,
    recorded_shares,
)
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import Modality
from tests.tiny import chat


@pytest.fixture
def inputs() -> dict:
    return chat(text=6, images=1)


@torch.no_grad()
def test_a_hook_sees_each_layers_pairs_with_their_modality(model, inputs) -> None:
    seen = []
    with hooked_pairs(model, lambda *pairs: seen.append(pairs)):
        model(**inputs)
    assert [path for path, *_ in seen] == list(find_expert_modules(model))
    for _, codes, x, index, weight in seen:
        assert x.shape == (12, 32)
        assert_close(codes, token_codes(model, inputs))
        assert index.shape == weight.shape == (12, 2)
    model(**inputs)
    assert len(seen) == 2, "no hook is left behind"


@torch.no_grad()
def test_a_hook_may_replace_the_pairs(model, inputs) -> None:
    before = model(**inputs).logits
    with hooked_pairs(model, lambda path, codes, x, index, weight: (index, weight)):
        assert_close(model(**inputs).logits, before)
    with hooked_pairs(model, lambda path, codes, x, index, weight: (index, 0 * weight)):
        changed = model(**inputs).logits
    assert not torch.allclose(changed, before)


@torch.no_grad()
def test_experts_that_are_called_otherwise_are_refused(model, inputs) -> None:
    layer = next(iter(find_expert_modules(model).values()))
    fewer = torch.zeros(3, 32), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2)
    with hooked_pairs(model, lambda *pairs: None):
        model(**inputs)
        with pytest.raises(ValueError, match=r"mlp\.experts are not called with .* 12 tokens"):
            layer(*fewer)


@torch.no_grad()
def test_shares_are_recorded_by_layer_and_modality(model, inputs) -> None:
    with recorded_shares(model, keep_all_policy(model)) as shares:
        model(**inputs)
    for of_layer in shares.values():
        assert {name: len(share) for name, share in of_layer.items()} == {
            "text": 8 * 2,
            "vision": 4 * 2,
            "audio": 0,
        }
        assert_close(of_layer["text"].view(8, 2).sum(1), torch.ones(8))


@torch.no_grad()
def test_the_policy_says_which_share_and_which_tokens(model, inputs) -> None:
    special = inputs["input_ids"][0, -2:].tolist()
    alpha = {path: {} for path in find_expert_modules(model)}
    policy = SkipPolicy(alpha=alpha, tau={}, share="weight", special_token_ids=special)
    seen = []
    with hooked_pairs(model, lambda *pairs: seen.append(pairs[4])):
        model(**inputs)
    with recorded_shares(model, policy) as shares:
        model(**inputs)
    text = next(iter(shares.values()))["text"]
    assert_close(text, seen[0][[0, 5, 6, 7, 8, 9]].flatten())


@torch.no_grad()
def test_experts_are_those_of_the_shares(model, inputs) -> None:
    policy, seen = keep_all_policy(model), []
    with hooked_pairs(model, lambda *pairs: seen.append(pairs)):
        model(**inputs)
    with recorded_shares(model, policy) as shares, recorded_experts(model, policy) as experts:
        model(**inputs)
    path, codes, _, index, _ = seen[0]
    assert torch.equal(experts[path]["text"], index[codes == Modality.TEXT].flatten().int())
    assert experts[path]["vision"].shape == shares[path]["vision"].shape
    everything = experts_hit(experts[path], shares[path], keep_all_theta())
    assert everything["text"] == len(index[codes == Modality.TEXT].unique())
    assert "audio" not in everything


def test_an_expert_with_no_pair_left_is_not_hit() -> None:
    experts = {"text": torch.tensor([3, 5, 3, 6]), "vision": torch.tensor([1])}
    shares = {"text": torch.tensor([0.7, 0.3, 0.6, 0.4]), "vision": torch.tensor([0.2])}
    theta = keep_all_theta()
    theta[Modality.TEXT], theta[Modality.VISION] = 0.4, 0.3
    assert experts_hit(experts, shares, theta) == {"text": 2, "vision": 0}


@torch.no_grad()
def test_one_of_so_many_tokens_will_do(model, inputs) -> None:
    with recorded_shares(model, keep_all_policy(model), every=3) as shares:
        model(**inputs)
    assert sum(map(len, next(iter(shares.values())).values())) == 4 * 2
