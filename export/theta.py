"""Thresholds as an input of a program, so that an artifact can be tuned where it is used.

The input ``theta`` has a row for each layer of the policy, in its order. A pair is kept if its
share is at least its token's threshold: -inf keeps all, +inf keeps none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

import modes_fx.hooks as h
from modes_fx.export.calls import THETA
from modes_fx.export.errors import ExportError
from modes_fx.policy import SkipPolicy
from modes_fx.policy_means import strength_in_words


def thresholds(policy: SkipPolicy, target: float | None) -> Tensor:
    """Return what an artifact with thresholds as inputs takes as ``theta``.

    Args:
        policy: that it was exported with.
        target: one of the policy's targets; None keeps every expert.

    Returns:
        ``[L, M]`` float32, by layer and modality code, as ``SkipPolicy.theta`` gives them.

    Raises:
        PolicyError: the policy has no such target.
    """
    return torch.stack([policy.theta(layer, target) for layer in policy.alpha])


def check_tunable(policy: SkipPolicy) -> None:
    """Check that nothing but thresholds differs from target to target.

    Raises:
        ExportError: it has means, which are of the experts that one target skips.
    """
    if policy.adds_means:
        strength = strength_in_words(policy.mean_strength)
        raise ExportError(
            "thresholds cannot be inputs: the policy adds the means of what is skipped "
            f"(mean_strength {strength}), which differ from target to target. Export the targets "
            "one by one, or calibrate without means"
        )


@contextmanager
def read_rows(layers: Mapping[str, nn.Module], paths: Iterable[str], theta: Tensor) -> Iterator:
    """Have layers read rows of an input in the place of their thresholds, while they are captured.

    Args:
        layers: attached, by path.
        paths: of the layer of each row.
        theta: ``[L, M]``.
    """
    own = {path: layers[path]._buffers[h.THETA] for path in paths}
    try:
        for row, path in enumerate(own):
            layers[path]._buffers[h.THETA] = theta.select(0, row)
        yield
    finally:
        for path, buffer in own.items():
            layers[path]._buffers[h.THETA] = buffer


def row_names(program: ExportedProgram, paths: Sequence[str]) -> dict[Node, str]:
    """Return of each node that picks a row of ``theta`` how the thresholds of its layer are called.

    Args:
        program: as it was captured.
        paths: of the layer of each row.
    """
    return {
        node: f"{paths[int(str(node.args[2]))]}.{THETA}"
        for node in program.graph.nodes
        if node.target is torch.ops.aten.select.int and node.args[0].name == THETA
    }
