"""The ops as torch sees them: schemas, fakes, and what they refuse."""

import pytest
import torch

from modes_fx import ops
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.vocabulary import Modality

GATE = torch.ops.modes_fx.gate.default
EXPERTS = torch.ops.modes_fx.experts.default
E = 4
INDEX = torch.tensor([[0, 1], [2, 3], [1, E]])
WEIGHT = torch.tensor([[0.7, 0.3], [0.6, 0.4], [1.0, 0.0]])
CODES = torch.tensor([Modality.TEXT, Modality.VISION, Modality.TEXT], dtype=torch.int8)
TOKENS = torch.tensor([3])
THETA = torch.tensor([0.35, 0.5, -torch.inf, -torch.inf, torch.inf])


def test_gate_and_experts_hold_what_torch_asks_of_an_op() -> None:
    body = Body((True,), (Step(MATMUL, ("x", "p0", True)),)).to_json()
    x, matrices = torch.randn(3, 5), torch.randn(E, 5, 5)
    torch.library.opcheck(GATE, (INDEX, WEIGHT, CODES, TOKENS, THETA, E, "weight", 0.0, 0))
    torch.library.opcheck(EXPERTS, (x, INDEX, WEIGHT, [matrices], body, E))


def test_count_pairs_adds_to_its_counter() -> None:
    counts = torch.zeros(len(Modality), 2, dtype=torch.int64)
    torch.library.opcheck(ops.count_pairs, (counts.clone(), INDEX, CODES, E))
    for _ in range(2):
        ops.count_pairs(counts, INDEX, CODES, E)
    assert counts[Modality.TEXT].tolist() == [8, 6]
    assert counts[Modality.VISION].tolist() == [4, 4]


def test_gate_holds_for_strided_inputs() -> None:
    index, weight = INDEX.T.contiguous().T, WEIGHT.T.contiguous().T
    torch.library.opcheck(GATE, (index, weight, CODES, TOKENS, THETA, E, "weight", 0.0, 0))


def test_gate_refuses_other_tokens_than_those_of_the_call() -> None:
    with pytest.raises(ValueError, match="3 tokens reach the experts, but the call has 7"):
        GATE(INDEX, WEIGHT, CODES, torch.tensor([7]), THETA, E, "weight", 0.0, 0)


def test_gate_takes_any_tokens_outside_a_call() -> None:
    index, _ = GATE(
        INDEX,
        WEIGHT,
        torch.full((3,), Modality.OTHER.value),
        TOKENS * 0,
        THETA,
        E,
        "weight",
        0.0,
        0,
    )
    assert torch.equal(index, INDEX)


def test_the_marker_says_that_nothing_was_rewritten_and_passes_gradients() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    counts = torch.zeros(0, 2, dtype=torch.int64)
    with pytest.warns(UserWarning, match="did not go through modes_backend"):
        out = ops.marker(x, THETA, CODES, TOKENS, counts, "auto", 0.0, 0)
    assert torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
