"""Query heads that share keys read them once when one token is decoded; other attention stays."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from modes_fx import modes_backend
from modes_fx.passes.attention import share_keys

aten = torch.ops.aten
BATCH, GROUPS, REPEATS, LENGTH, SIZE = 2, 3, 4, 40, 16


def repeat(x: Tensor) -> Tensor:
    batch, groups, length, size = x.shape
    return x[:, :, None].expand(batch, groups, REPEATS, length, size).flatten(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    out = scaled_dot_product_attention(query, repeat(key), repeat(value), attn_mask=mask, scale=0.3)
    return out.transpose(1, 2).flatten(2)


def inputs(tokens: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    query = torch.randn(BATCH, tokens, GROUPS * REPEATS, SIZE, dtype=dtype).transpose(1, 2)
    return [query, *torch.randn(2, BATCH, GROUPS, LENGTH, SIZE, dtype=dtype)]


def padding(*sizes: int) -> Tensor:
    return torch.rand(BATCH, *sizes, LENGTH) < 0.7


def rewritten(function, *args) -> tuple[int, GraphModule]:
    module = make_fx(lambda *args: function(*args), tracing_mode="fake")(*args)
    count = share_keys(module.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return count, module


def longest(module: GraphModule, target) -> int:
    return max(n.meta["val"].numel() for n in module.graph.nodes if n.target is target)


@pytest.mark.parametrize("mask", [None, padding(1, 1)], ids=["no mask", "padding"])
def test_one_token_attends_without_repeating_keys(mask) -> None:
    args = (*inputs(), mask)
    count, module = rewritten(attend, *args)
    assert count == 1
    assert longest(module, aten.clone.default) == args[0].numel()
    assert_close(module(*args), attend(*args))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_computes_the_same(dtype, dynamic) -> None:
    options = {"compiler": "eager"}
    compiled = torch.compile(attend, backend=modes_backend, options=options, dynamic=dynamic)
    args = (*inputs(dtype=dtype), padding(1, 1))
    with torch.inference_mode():
        assert_close(compiled(*args), attend(*args))


def test_values_of_another_size_than_keys() -> None:
    query, key, value = inputs()
    args = (query, key, torch.cat([value, value], dim=-1)[..., : SIZE // 2])
    assert_close(rewritten(attend, *args)[1](*args), attend(*args))


def shared(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query[:, :GROUPS], key, value)


def one_repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, repeat(key), value.repeat(1, REPEATS, 1, 1))


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, repeat(key), repeat(value), is_causal=True)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        pytest.param(attend, inputs(tokens=2), id="two tokens"),
        pytest.param(attend, [*inputs(), padding(12, 1)], id="a mask for each head"),
        pytest.param(shared, inputs(), id="nothing is repeated"),
        pytest.param(one_repeated, inputs(), id="values in another order"),
        pytest.param(causal, inputs(), id="a causal mask"),
    ],
)
def test_what_differs_in_one_thing_stays_as_it_is(function, args) -> None:
    count, module = rewritten(function, *args)
    assert count == 0
    assert_close(module(*args), function(*args))
