"""Merge a gate with the experts that read its choice, where that takes the device fewer kernels."""

from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from modes_fx.fused_ops import GATED_EXPERTS
from modes_fx.passes.rewrite import EXPERTS, GATE

FUSING_DEVICES = ("cuda",)


def fuse_gates(graph: Graph) -> int:
    """Merge every gate with its experts, on devices that gain by it.

    A choice that is read before the experts run, as when pairs are counted, stays an op of its own.

    Args:
        graph: with ``modes_fx::gate`` and ``modes_fx::experts``; changed in place, dead nodes stay.

    Returns:
        How many were merged.
    """
    experts = [node for node in graph.nodes if node.target is EXPERTS]
    return sum(_fuse(graph, node) for node in experts)


def _fuse(graph: Graph, experts: Node) -> bool:
    x, index, weight, params, body, num_experts = experts.args
    gate = _gate_of(index, weight)
    if gate is None or not _gains(x):
        return False
    position = {node: i for i, node in enumerate(graph.nodes)}
    readers = [*index.users, *weight.users]  # type: ignore[union-attr]
    if any(position[reader] < position[experts] for reader in readers):
        return False
    choice, weights, modality, tokens, theta, skipped_id, *options = gate.args
    if skipped_id != num_experts:
        return False  # the gate also decides for experts of other devices
    with graph.inserting_before(experts):
        fused = graph.call_function(
            GATED_EXPERTS,
            (x, choice, weights, modality, tokens, theta, params, body, num_experts, *options),
        )
        parts = [graph.call_function(getitem, (fused, i)) for i in range(3)]
    for old, new in zip((experts, index, weight), parts, strict=True):
        assert isinstance(old, Node)
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
    return True


def _gains(x: Any) -> bool:
    value = x.meta.get("val")
    return isinstance(value, torch.Tensor) and value.device.type in FUSING_DEVICES


def _gate_of(index: Any, weight: Any) -> Node | None:
    """Return the gate whose two results these are; None where there is none."""
    if not all(isinstance(node, Node) and node.target is getitem for node in (index, weight)):
        return None
    gate, first = index.args
    is_gate = gate.target is GATE and (first, *weight.args) == (0, gate, 1)
    return gate if is_gate else None
