"""A layer's plugins compute what the reference does, whatever the body."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton")

from modes_fx.export.plugins.layer import plugins_of
from modes_fx.kernels import reference
from modes_fx.kernels.triton.calls import launch
from tests.modes_fx.kernels.triton.bodies import BODIES, Sizes, problem

SIZES = Sizes(T=5, K=2, E=4, H=24, I=20)


def run(plugin, *inputs):
    call = plugin.call(*inputs)
    call.args[-1].fill_(torch.nan)
    launch(call.kernel, call.grid, *call.args, **call.options)
    return call.args[-1]


@pytest.mark.parametrize("name", BODIES)
def test_both_plugins_give_the_sum_of_what_is_kept(name) -> None:
    given = problem(name, SIZES, torch.float32, torch.device("cpu"))
    index = given.index.clone()
    index[0, 0] = index[3] = SIZES.E
    arguments = (given.params, given.body.to_json(), SIZES.E)
    up, down = plugins_of(given.x, given.weight, *arguments, SIZES.K, "sm_89")
    narrow = index.int()
    h = run(up, given.x, given.weight, narrow, *(given.params[i] for i in up.params))
    out = run(down, h, given.weight, narrow, *(given.params[i] for i in down.params))
    expected = reference.experts(given.x, index, given.weight, given.params, given.body, SIZES.E)
    assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert not out[3].any()


def test_layers_that_compute_alike_share_their_plugins() -> None:
    given = problem("swiglu", SIZES, torch.float32, torch.device("cpu"))

    def names(top_k: int, target: str) -> list[str]:
        arguments = (given.params, given.body.to_json(), SIZES.E, top_k, target)
        return [plugin.name for plugin in plugins_of(given.x, given.weight, *arguments)]

    assert names(2, "sm_89") == names(2, "sm_89")
    assert set(names(2, "sm_89")).isdisjoint(names(1, "sm_89"))
    assert set(names(2, "sm_89")).isdisjoint(names(2, "sm_80"))
