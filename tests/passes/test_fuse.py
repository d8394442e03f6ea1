"""Merging a gate with its experts: on devices that gain, and where nothing is in between."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from modes_fx import ops
from modes_fx.fused_ops import GATED_EXPERTS
from modes_fx.passes.fuse import fuse_gates
from modes_fx.passes.rewrite import EXPERTS, GATE
from tests.modes_fx.test_fused_ops import BODY, E, arguments


def traced(device: str, between=lambda index: None, gate_experts: int = E):
    """The graph of a gate and experts on fake tensors."""
    x, index, weight, codes, tokens, theta, params, *_ = arguments()

    def layer(x, index, weight, codes, tokens, theta, up, down):
        kept, kept_weight = ops.gate(
            index, weight, codes, tokens, theta, gate_experts, "renormalised", 0.0, 0
        )
        noted = between(kept)
        out = ops.experts(x, kept, kept_weight, [up, down], BODY, E)
        return (out, kept) if noted is None else (out, kept, noted)

    with FakeTensorMode():
        inputs = (x, index, weight, codes, tokens, theta, *params)
        fakes = [torch.empty(t.shape, dtype=t.dtype, device=device) for t in inputs]
        return make_fx(layer)(*fakes)


def targets(module) -> list[object]:
    return [node.target for node in module.graph.nodes]


def test_a_gate_and_its_experts_become_one_op_on_a_gpu() -> None:
    module = traced("cuda")
    assert fuse_gates(module.graph) == 1
    module.graph.eliminate_dead_code()
    module.graph.lint()
    assert GATED_EXPERTS in targets(module)
    assert not {GATE, EXPERTS} & set(targets(module))
    (fused,) = [node for node in module.graph.nodes if node.target is GATED_EXPERTS]
    assert len(fused.users) == 2  # nothing reads the kept weights


def test_on_a_cpu_they_stay_two() -> None:
    module = traced("cpu")
    assert fuse_gates(module.graph) == 0
    assert {GATE, EXPERTS} <= set(targets(module))


def test_a_choice_that_is_read_before_the_experts_stays_a_gate_of_its_own() -> None:
    assert fuse_gates(traced("cuda", between=lambda index: (index < E).sum()).graph) == 0


def test_a_gate_that_also_decides_for_other_devices_stays_a_gate_of_its_own() -> None:
    assert fuse_gates(traced("cuda", gate_experts=2 * E).graph) == 0
