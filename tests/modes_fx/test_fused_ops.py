"""The fused op computes what the two ops do."""

import torch
from torch.testing import assert_close

from modes_fx import fused_ops, ops
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.kernels.triton import register
from modes_fx.kernels.triton.calls import recorded
from modes_fx.vocabulary import Modality

T, K, E, H = 6, 2, 4, 16
BODY = Body(
    (True, True),
    (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.relu.default", ("%0",)),
        Step(MATMUL, ("%1", "p1", True)),
        Step("aten.mul.Tensor", ("%2", "w")),
    ),
).to_json()


def arguments(tokens: int = T):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(tokens, E, generator=generator).softmax(-1)
    weight, index = scores.topk(K, dim=-1)
    x = torch.randn(tokens, H, generator=generator)
    params = [torch.randn(E, 8, H, generator=generator), torch.randn(E, H, 8, generator=generator)]
    codes = torch.zeros(tokens, dtype=torch.int8)
    theta = torch.full((len(Modality),), 0.5)
    gate = (codes, torch.tensor([tokens]), theta)
    return (x, index, weight, *gate, params, BODY, E, "renormalised", 0.0, 0)


def test_it_holds_what_torch_asks_of_an_op() -> None:
    torch.library.opcheck(fused_ops.gated_experts, arguments())


def test_the_kernels_compute_the_same_in_fewer_launches() -> None:
    x, index, weight, *gate, params, body, experts, share, beta, min_k = arguments()
    options = (*gate, experts, share, beta, min_k)
    with recorded() as separate:
        kept = register.gate(index, weight, *options)
        expected = register.experts(x, *kept, params, body, experts)
    with recorded() as fused:
        out, *kept_again = register.gated_experts(*arguments())
    assert (len(fused), len(separate)) == (4, 5)
    assert torch.equal(out, expected)
    assert all(map(torch.equal, kept_again, kept))
    portable = ops.experts(x, *ops.gate(index, weight, *options), params, body, experts)
    assert_close(out, portable, rtol=1e-5, atol=1e-5)


def test_one_token_takes_three_launches() -> None:
    with recorded() as calls:
        out, *_ = register.gated_experts(*arguments(tokens=1))
    assert [call.name for call in calls] == ["gate_tokens", "decode_up", "decode_down"]
    assert_close(out, fused_ops.gated_experts(*arguments(tokens=1))[0], rtol=1e-5, atol=1e-5)
