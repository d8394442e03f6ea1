"""A stage warms up, then decays; favoured kinds give way to all others."""

import pytest
import torch
from torch import nn

from modes_fx.bench.demo_model.schedule import Stage, build_optimizer, update

STAGE = Stage(
    name="test",
    seed=0,
    steps=100,
    decay_steps=100,
    batch=1,
    learning_rate=1.0,
    warmup=10,
    favoured=("digit",),
    favoured_steps=50,
)


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [STAGE.rate_at(step) for step in range(STAGE.steps)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_favoured_kinds_lose_their_privilege() -> None:
    assert [STAGE.favoured_share_at(step) for step in (0, 25, 50, 99)] == [0.8, 0.4, 0.0, 0.0]


def test_an_update_moves_weights_against_the_gradient_at_the_given_rate() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    update(build_optimizer(layer), layer(torch.ones(1)).sum(), learning_rate=0.1)
    # AdamW's first step has the size of the rate, besides 0.1 * 0.05 of weight decay.
    assert layer.weight.item() == pytest.approx(0.895, abs=1e-3)
